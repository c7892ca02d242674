#!/usr/bin/env bash
# Runs one service of the stack in the foreground, after the services that it needs: service.sh NAME
set -euo pipefail
# shellcheck source=/dev/null
source "$STACK/secrets"
# shellcheck source=/dev/null
source "$STACK/environment"
umask 077

wait_for() { # PORT
    until (: < "/dev/tcp/127.0.0.1/$1") 2> /dev/null; do sleep 0.3; done
}

case $1 in
postgres)
    as_postgres=()
    [ "$(id -u)" = 0 ] && as_postgres=(setpriv --reuid postgres --regid postgres --clear-groups)
    cd /
    exec "${as_postgres[@]}" "$POSTGRES_BIN/postgres" -D "$STACK/postgres/data" -h 127.0.0.1 -p "$POSTGRES_PORT" -k ''
    ;;
s3)
    base=$((S3_PORT + 1)) # its parts communicate over the following ports
    cd "$STACK" # for security.toml
    exec weed server -ip=127.0.0.1 -ip.bind=127.0.0.1 -dir="$STACK/s3" -master.telemetry=false -volume.max=50 \
        -master.volumeSizeLimitMB=1024 -s3 -s3.config="$STACK/s3.json" -s3.port="$S3_PORT" -s3.port.iceberg=0 \
        -s3.port.lance=0 -s3.port.grpc=$base -master.port=$((base + 1)) -master.port.grpc=$((base + 2)) -volume.port=$((base + 3)) \
        -volume.port.grpc=$((base + 4)) -filer.port=$((base + 5)) -filer.port.grpc=$((base + 6)) > "$STACK/s3.log" 2>&1
    ;;
mlflow)
    wait_for "$POSTGRES_PORT"
    wait_for "$S3_PORT"
    until python3 -c 'import s3fs; s3fs.S3FileSystem().makedirs("mlflow", exist_ok=True)' 2> /dev/null; do sleep 0.5; done
    export MLFLOW_AUTH_CONFIG_PATH=$STACK/mlflow.ini MLFLOW_FLASK_SERVER_SECRET_KEY=$MLFLOW_SECRET_KEY
    exec mlflow server --host 127.0.0.1 --port "$MLFLOW_PORT" --app-name basic-auth --workers 1 \
        --backend-store-uri "postgresql://drivetrain:$POSTGRES_PASSWORD@127.0.0.1:$POSTGRES_PORT/mlflow" \
        --artifacts-destination s3://mlflow
    ;;
ray)
    # Removes the address file, which the next `ray.init` would use.
    trap 'rm -f "${RAY_TMPDIR:-${TMPDIR:-/tmp}}/ray/ray_current_cluster"; kill $ray; wait $ray' TERM INT
    ray start --head --block --port="$RAY_PORT" --dashboard-host=127.0.0.1 --log-style=record > "$STACK/ray.log" 2>&1 &
    ray=$!
    wait $ray
    ;;
server)
    wait_for "$POSTGRES_PORT"
    wait_for "$MLFLOW_PORT"
    wait_for "$RAY_PORT"
    if [ ! -e "$DRIVETRAIN_HOME/token" ]; then
        drivetrain token create --user prometheus --role viewer > "$STACK/prometheus/token"
        drivetrain token create --user "$(id -un)" --role admin > "$STACK/admin"
        mv "$STACK/admin" "$DRIVETRAIN_HOME/token"
    fi
    exec drivetrain server --port "$SERVER_PORT" --address "127.0.0.1:$RAY_PORT"
    ;;
prometheus)
    wait_for "$SERVER_PORT"
    exec prometheus --config.file="$STACK/prometheus/prometheus.yml" --storage.tsdb.path="$STACK/prometheus/data" \
        --web.listen-address="127.0.0.1:$PROMETHEUS_PORT" --log.level=warn
    ;;
*)
    echo "error: unknown service $1" >&2
    exit 2
    ;;
esac

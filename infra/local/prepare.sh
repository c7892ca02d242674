#!/usr/bin/env bash
# Prepares the services; data is created once, configuration on every start.
set -euo pipefail

for program in weed honcho mlflow prometheus ray drivetrain "$POSTGRES_BIN/initdb"; do
    if ! command -v "$program" > /dev/null; then
        echo "error: $program is not installed; see $LOCAL/up.sh for the required packages" >&2
        exit 2
    fi
done

umask 077
mkdir -p "$STACK"/{s3,prometheus,home}
if [ ! -e "$STACK/secrets" ]; then
    for name in POSTGRES_PASSWORD MLFLOW_ADMIN_PASSWORD MLFLOW_SECRET_KEY S3_SECRET S3_INNER_SECRET RAY_AUTH_TOKEN; do
        echo "export $name=$(head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n')"
    done > "$STACK/secrets"
fi
# shellcheck source=/dev/null
source "$STACK/secrets"

database=postgresql://drivetrain:$POSTGRES_PASSWORD@127.0.0.1:$POSTGRES_PORT

# Environment of users and programs on this machine.
cat > "$STACK/environment" << END
export DRIVETRAIN_HOME=$STACK/home DRIVETRAIN_SERVER=http://127.0.0.1:$SERVER_PORT
export DRIVETRAIN_DATABASE_URL=$database/drivetrain
export MLFLOW_TRACKING_URI=http://127.0.0.1:$MLFLOW_PORT
export MLFLOW_TRACKING_USERNAME=admin MLFLOW_TRACKING_PASSWORD=$MLFLOW_ADMIN_PASSWORD
export AWS_ENDPOINT_URL=http://127.0.0.1:$S3_PORT AWS_DEFAULT_REGION=us-east-1
export AWS_ACCESS_KEY_ID=drivetrain AWS_SECRET_ACCESS_KEY=$S3_SECRET
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$RAY_AUTH_TOKEN RAY_USAGE_STATS_ENABLED=0
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=1
# Makes Ray start a single node that listens only on loopback.
export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0
END

cat > "$STACK/s3.json" << END
{"identities": [{"name": "drivetrain", "actions": ["Admin", "Read", "List", "Tagging", "Write"],
  "credentials": [{"accessKey": "drivetrain", "secretKey": "$S3_SECRET"}]}]}
END

# Keys for the communication between the parts of SeaweedFS; other clients are rejected.
cat > "$STACK/security.toml" << END
[jwt.signing]
key = "$S3_INNER_SECRET"
[jwt.signing.read]
key = "$S3_INNER_SECRET"
[jwt.filer_signing]
key = "$S3_INNER_SECRET"
[jwt.filer_signing.read]
key = "$S3_INNER_SECRET"
END

cat > "$STACK/mlflow.ini" << END
[mlflow]
default_permission = READ
database_uri = $database/mlflow_users
admin_username = admin
admin_password = $MLFLOW_ADMIN_PASSWORD
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
END

# PostgreSQL does not run as root.
as_postgres=()
if [ "$(id -u)" = 0 ]; then
    as_postgres=(runuser -u postgres --)
    chmod 711 "$STACK"
    install --directory --owner=postgres --mode=700 "$STACK/postgres"
    if ! runuser -u postgres -- test -x "$STACK/postgres"; then
        echo "error: STACK: user postgres cannot enter $STACK; set STACK to a folder without private parent folders" >&2
        exit 2
    fi
fi
if [ ! -e "$STACK/postgres/data/PG_VERSION" ]; then
    cd /
    mkdir -p "$STACK/postgres"
    "${as_postgres[@]}" tee "$STACK/postgres/password" <<< "$POSTGRES_PASSWORD" > /dev/null
    "${as_postgres[@]}" "$POSTGRES_BIN/initdb" --pgdata "$STACK/postgres/data" --username drivetrain \
        --auth scram-sha-256 --pwfile "$STACK/postgres/password" > /dev/null
    rm "$STACK/postgres/password"
    start=(-o "-h 127.0.0.1 -p $POSTGRES_PORT -k ''" --pgdata "$STACK/postgres/data" --wait --silent)
    "${as_postgres[@]}" "$POSTGRES_BIN/pg_ctl" start "${start[@]}" --log "$STACK/postgres/log"
    export PGPASSWORD=$POSTGRES_PASSWORD
    for name in drivetrain mlflow mlflow_users; do
        "${as_postgres[@]}" "$POSTGRES_BIN/createdb" --host 127.0.0.1 --port "$POSTGRES_PORT" --username drivetrain "$name"
    done
    "${as_postgres[@]}" "$POSTGRES_BIN/pg_ctl" stop --pgdata "$STACK/postgres/data" --wait --silent
fi

cp "$LOCAL/../monitoring/alerts.yml" "$STACK/prometheus/"
sed "s/127.0.0.1:8900/127.0.0.1:$SERVER_PORT/; s|/tmp/ray/|${RAY_TMPDIR:-/tmp}/ray/|" "$LOCAL/../monitoring/prometheus.yml" > "$STACK/prometheus/prometheus.yml"

# shellcheck shell=bash
# Folders and ports; override them with environment variables.
STACK=$(realpath -m "${STACK:-$HOME/.drivetrain-stack}")
POSTGRES_BIN=${POSTGRES_BIN:-$(find /usr/lib/postgresql -name bin -type d 2>/dev/null | sort -V | tail -n 1)}
POSTGRES_PORT=${POSTGRES_PORT:-5433}
S3_PORT=${S3_PORT:-8333}
MLFLOW_PORT=${MLFLOW_PORT:-5000}
PROMETHEUS_PORT=${PROMETHEUS_PORT:-9090}
SERVER_PORT=${SERVER_PORT:-8900}
RAY_PORT=${RAY_PORT:-6379}
export STACK POSTGRES_BIN POSTGRES_PORT S3_PORT MLFLOW_PORT PROMETHEUS_PORT SERVER_PORT RAY_PORT

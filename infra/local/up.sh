#!/usr/bin/env bash
# The complete stack of a team on this machine, on loopback: S3 (SeaweedFS), PostgreSQL, an MLflow server with users,
# Prometheus, Ray with token authentication, and the Drivetrain server. Ctrl-C stops all services; STACK keeps the data.
#
#   apt-get install postgresql prometheus
#   pip install "drivetrain[local]"
#   infra/local/up.sh
set -euo pipefail
LOCAL=$(cd "$(dirname "$0")" && pwd)
export LOCAL
# shellcheck source=infra/local/settings.sh
source "$LOCAL/settings.sh"
"$LOCAL/prepare.sh"
echo "data folder: $STACK; in another shell: source $STACK/environment"
exec honcho start --procfile "$LOCAL/Procfile" --app-root "$STACK" --no-colour --no-prefix

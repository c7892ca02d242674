#!/usr/bin/env bash
# A team's whole stack on this machine, on loopback: S3 (SeaweedFS), PostgreSQL, an MLflow server with users,
# Prometheus, Ray with its token, and Drivetrain's server. Ctrl-C ends all of it; what it has stored stays in STACK.
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
echo "everything lies in $STACK; in another shell: source $STACK/environment"
exec honcho start --procfile "$LOCAL/Procfile" --app-root "$STACK" --no-colour --no-prefix

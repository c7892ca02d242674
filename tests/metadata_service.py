"""The metadata service of a spot machine, as documented by Amazon, Google and Microsoft.

As a program, with the file of the notice, it serves where they all do, for the host that it runs on.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from email.utils import format_datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the program is started without this package
    from tests.hosts import Host

ADDRESS = "169.254.169.254"
OWN_NAME = "vm-2"
_TOKEN = "token-of-this-session"  # no real token


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, notice: Path, *arguments: object) -> None:
        self._notice = notice
        super().__init__(*arguments)  # type: ignore[arg-type]  # passed through

    def do_PUT(self) -> None:
        asked = self.path == "/latest/api/token" and "X-aws-ec2-metadata-token-ttl-seconds" in self.headers
        self._answer(200 if asked else 400, _TOKEN)

    def do_GET(self) -> None:
        moment = datetime.fromisoformat(self._notice.read_text()) if self._notice.exists() else None
        match self.path.partition("?")[0]:
            case "/latest/meta-data/spot/instance-action":
                said = moment and json.dumps({"action": "terminate", "time": f"{moment:%Y-%m-%dT%H:%M:%SZ}"})
                known = self.headers.get("X-aws-ec2-metadata-token") == _TOKEN
                self._answer(401 if not known else 200 if said else 404, said or "")
            case "/computeMetadata/v1/instance/preempted":
                known = self.headers.get("Metadata-Flavor") == "Google"
                self._answer(200 if known else 403, "TRUE" if moment else "FALSE")
            case "/metadata/instance/compute/name":
                self._answer(200 if self.headers.get("Metadata") == "true" else 400, OWN_NAME)
            case "/metadata/scheduledevents":
                others = {"EventType": "Preempt", "Resources": ["vm-1"], "NotBefore": ""}
                reboot = {"EventType": "Reboot", "Resources": [OWN_NAME], "NotBefore": ""}
                own = {"EventType": "Preempt", "Resources": [OWN_NAME]}
                events = [{**own, "NotBefore": format_datetime(moment, usegmt=True)}] if moment else []
                said = json.dumps({"DocumentIncarnation": 2, "Events": [others, reboot, *events]})
                self._answer(200 if self.headers.get("Metadata") == "true" else 400, said)
            case _:
                self._answer(404, "")

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, status: int, body: str) -> None:
        status, body = getattr(self.server, "instead", None) or (status, body)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())


def service(notice: Path, address: tuple[str, int] = ("127.0.0.1", 0)) -> ThreadingHTTPServer:
    """Run a service that announces the interruption of its machine once there is a notice."""
    return ThreadingHTTPServer(address, partial(_Handler, notice))


def give_notice(notice: Path, moment: datetime) -> None:
    """Have it said that the machine is taken back at a moment."""
    draft = notice.with_suffix(".draft")
    draft.write_text(moment.astimezone(UTC).isoformat())
    draft.rename(notice)


def serve_metadata(host: Host) -> None:
    """Have a host ask for notices as a machine of a cloud does."""
    host.run("ip", "address", "add", ADDRESS, "dev", "lo")
    host.keep_running(sys.executable, __file__, str(notice_of(host)))
    host.run("bash", "-c", f"until (exec 3<>/dev/tcp/{ADDRESS}/80) 2> /dev/null; do sleep 0.1; done")


def notice_of(host: Host) -> Path:
    """Return the file that the service of a host checks."""
    return host.home / "notice"


if __name__ == "__main__":
    service(Path(sys.argv[1]), (ADDRESS, 80)).serve_forever()

"""The interruption notice of a cloud for a spot machine.

The machine polls the metadata service, whose address is the same on all clouds. Sources: Amazon EC2 "Spot Instance
interruption notices", Google Compute Engine "Preemption process", Azure "Scheduled Events for Linux VMs".
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx
from drivetrain_pipelines.errors import InputError

METADATA = "http://169.254.169.254"
CLOUDS = ("aws", "gcp", "azure")
_POLL_INTERVAL_S = 2.0
_FIRST_ANSWER_TIMEOUT_S = 180.0  # covers the boot of the machine, and Azure's delay before the first events
_GCP_NOTICE_S = 30.0  # it sends no time: this is the documented period
_ANSWER_ERRORS = (httpx.HTTPError, ValueError, KeyError)  # no answer, or not the documented one


def check_cloud(cloud: str) -> None:
    """Raise InputError for an unsupported cloud."""
    if cloud not in CLOUDS:
        raise InputError("--on-notice", cloud, f"one of {', '.join(CLOUDS)}")


def wait_for_notice(cloud: str, metadata: str = METADATA) -> float:
    """Wait for an interruption notice; return the remaining seconds.

    Args:
        cloud: one of `CLOUDS`.
        metadata: base URL of its metadata service.

    Raises:
        InputError: the metadata service does not respond, or belongs to another cloud.
    """
    ask = {"aws": _aws, "gcp": _gcp, "azure": _azure}[cloud]
    deadline, answered = time.monotonic() + _FIRST_ANSWER_TIMEOUT_S, False
    with httpx.Client(base_url=metadata, timeout=5.0, trust_env=False) as client:
        while True:
            try:
                if (left := ask(client)) is not None:
                    return max(0.0, left)
                answered = True
            except _ANSWER_ERRORS as error:  # later errors are temporary
                if not answered and time.monotonic() > deadline:
                    fix = "Use it only on machines of that cloud, and give containers access to its metadata service."
                    raise InputError("--on-notice", cloud, f"the cloud of this machine ({error!r})", fix) from error
            time.sleep(_POLL_INTERVAL_S)


def _aws(client: httpx.Client) -> float | None:
    token = client.put("/latest/api/token", headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"}).raise_for_status()
    answer = client.get("/latest/meta-data/spot/instance-action", headers={"X-aws-ec2-metadata-token": token.text})
    if answer.status_code == httpx.codes.NOT_FOUND:
        return None
    return _seconds_until(datetime.fromisoformat(answer.raise_for_status().json()["time"]))


def _gcp(client: httpx.Client) -> float | None:
    answer = client.get("/computeMetadata/v1/instance/preempted", headers={"Metadata-Flavor": "Google"})
    return _GCP_NOTICE_S if answer.raise_for_status().text == "TRUE" else None


def _azure(client: httpx.Client) -> float | None:
    name = _azure_get(client, "/metadata/instance/compute/name?api-version=2021-02-01&format=text").text
    events = _azure_get(client, "/metadata/scheduledevents?api-version=2020-07-01").json()["Events"]
    times = [event["NotBefore"] for event in events if event["EventType"] == "Preempt" and name in event["Resources"]]
    # an event without a time has already started
    return min((_seconds_until(parsedate_to_datetime(text)) if text else 0.0 for text in times), default=None)


def _azure_get(client: httpx.Client, path: str) -> httpx.Response:
    return client.get(path, headers={"Metadata": "true"}).raise_for_status()


def _seconds_until(moment: datetime) -> float:
    return (moment - datetime.now(UTC)).total_seconds()

"""Proxies of the environment, which this machine's own services are never asked through."""

from __future__ import annotations

import ipaddress
import os

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_VARIABLES = ("no_proxy", "NO_PROXY")  # libraries read one, the other, or both


def is_loopback(host: str) -> bool:
    """Return whether a host name or an IP address is this machine's loopback."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def reach_loopback_directly() -> None:
    """Add loopback to the exceptions from ``HTTP_PROXY``, ``ALL_PROXY`` and so on, here and in processes started later.

    Libraries for HTTP and S3 would ask a proxy for 127.0.0.1, too, which it cannot reach.
    """
    written = [os.environ.get(name, "") for name in _VARIABLES]
    hosts = [host.strip() for text in written for host in text.split(",") if host.strip()]
    if "*" in hosts:
        return
    os.environ |= dict.fromkeys(_VARIABLES, ",".join(dict.fromkeys([*hosts, *_LOOPBACK])))

"""Names of files that hold secrets: never packed, and rejected where a job needs them."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable

SECRETS = [".env", ".env.*", "*.pem", "*.key", "id_rsa*", "id_ed25519*", ".netrc", "credentials", "credentials.*",
           ".aws", ".ssh", "*.p12", "*.pfx", "auth_token", "token"]  # fmt: skip


def is_secret(parts: Iterable[str]) -> bool:
    """Return whether a part of a path is the name of a secret."""
    return any(fnmatch.fnmatch(part, pattern) for part in parts for pattern in SECRETS)

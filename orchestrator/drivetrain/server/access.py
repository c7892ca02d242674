"""Access: roles, and bearer tokens of which only digests are stored."""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from dataclasses import dataclass
from enum import StrEnum

from drivetrain_pipelines.errors import InputError
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from drivetrain.database.engine import READS, open_database
from drivetrain.database.tables import Token
from drivetrain.errors import NotFoundError

_PREFIX = "dt_"
_SECRET_BYTES = 32
_SUGGESTIONS = 10  # ids in the error about an unknown token
_USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}")


class Role(StrEnum):
    """What a token allows; each includes the ones before it."""

    VIEWER = "viewer"  # reads everything
    USER = "user"  # submits runs, and changes their own
    ADMIN = "admin"  # changes all runs, and creates tokens

    def includes(self, other: Role) -> bool:
        """Return whether this role allows what ``other`` allows."""
        order = list(Role)
        return order.index(self) >= order.index(other)


@dataclass(frozen=True)
class Principal:
    """The caller of a route."""

    user: str
    role: Role


@dataclass(frozen=True)
class TokenInfo:
    """A token without its secret. ``expires`` is in seconds since the epoch, or None."""

    id: str
    user: str
    role: Role
    created: float
    expires: float | None


class Tokens:
    """All tokens of a server.

    Args:
        url: of the database.
    """

    def __init__(self, url: str) -> None:
        self._engine = open_database(url)
        self._reading = self._engine.execution_options(**{READS: True})

    def create(self, user: str, role: str, days: float | None = None) -> tuple[str, TokenInfo]:
        """Create a token; return its secret, which is not stored, and what is known of it.

        Raises:
            InputError: the role, the user name or the lifetime is not valid.
        """
        if not _USER.fullmatch(user):
            raise InputError("--user", repr(user), "up to 63 letters, digits and . _ @ -")
        if role not in list(Role):
            raise InputError("--role", repr(role), ", ".join(Role))
        if days is not None and days <= 0:
            raise InputError("--days", str(days), "more than 0")
        secret = _PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
        now = time.time()
        expires = None if days is None else now + days * 86400
        info = TokenInfo(secrets.token_hex(4), user, Role(role), now, expires)
        row = Token(id=info.id, digest=_digest(secret), user=user, role=role, created=now, expires=expires)
        with Session(self._engine) as session, session.begin():
            session.add(row)
        return secret, info

    def principal(self, secret: str) -> Principal | None:
        """Return the user of a token; None when it is unknown or has expired."""
        # Looked up by its digest: the time does not depend on the secret.
        with Session(self._reading) as session:
            row = session.scalars(select(Token).where(Token.digest == _digest(secret))).one_or_none()
            if row is None or (row.expires is not None and row.expires <= time.time()):
                return None
            return Principal(row.user, Role(row.role))

    def all(self) -> list[TokenInfo]:
        """Return what is known of every token, the oldest first."""
        with Session(self._reading) as session:
            rows = session.scalars(select(Token).order_by(Token.created)).all()
            return [TokenInfo(row.id, row.user, Role(row.role), row.created, row.expires) for row in rows]

    def revoke(self, token_id: str) -> None:
        """Delete a token. Raises NotFoundError when there is none."""
        with Session(self._engine) as session, session.begin():
            if not session.execute(delete(Token).where(Token.id == token_id)).rowcount:  # type: ignore[attr-defined]
                known = session.scalars(select(Token.id).order_by(Token.created.desc()).limit(_SUGGESTIONS)).all()
                raise NotFoundError(
                    "token", token_id, known, fix="`drivetrain token list` shows the ids of all tokens."
                )

    def any(self) -> bool:
        """Return whether there is a token."""
        with Session(self._reading) as session:
            return bool(session.scalar(select(func.count()).select_from(Token)))


def _digest(secret: str) -> str:
    """Return the digest of a secret. A plain one suffices: the secret has 256 random bits."""
    return hashlib.sha256(secret.encode()).hexdigest()

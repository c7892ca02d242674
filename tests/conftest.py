"""For all tests: no example is too slow, because shared machines are."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("drivetrain", deadline=None)
settings.load_profile("drivetrain")

"""The toy job of the cluster tests."""

from __future__ import annotations

from tests.cluster.conftest import toy_job

__all__ = ["toy_job"]

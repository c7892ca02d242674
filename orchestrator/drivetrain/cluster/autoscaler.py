"""Requests to Ray's autoscaler for the nodes that gangs need. Ray removes idle nodes itself."""

from __future__ import annotations

import logging

from ray.autoscaler.sdk import request_resources

from drivetrain.scheduling.model import Request

_log = logging.getLogger(__name__)


class Autoscaler:
    """Requests the total demand after each change."""

    def __init__(self) -> None:
        self._requested: list[dict[str, float]] | None = None

    def __call__(self, gangs: list[Request]) -> None:
        """Request resources for all given gangs at the same time, including running ones."""
        shapes = [({"CPU": g.cpus} | ({"GPU": g.gpus} if g.gpus else {}), g.workers) for g in gangs]
        bundles = sorted((shape for shape, workers in shapes for _ in range(workers)), key=str)
        if bundles != self._requested:
            _log.info("requesting nodes for %d workers", len(bundles))
            request_resources(bundles=bundles)
            self._requested = bundles

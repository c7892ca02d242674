"""Has Ray's autoscaler add the nodes that gangs need. It takes idle ones away by itself."""

from __future__ import annotations

import logging

from ray.autoscaler.sdk import request_resources

from drivetrain.scheduling.model import Request

_log = logging.getLogger(__name__)


class Autoscaler:
    """Asks for the whole that is needed, again whenever that has changed."""

    def __init__(self) -> None:
        self._asked: list[dict[str, float]] | None = None

    def __call__(self, gangs: list[Request]) -> None:
        """Room for these gangs at the same time, those that run among them."""
        shapes = [({"CPU": g.cpus} | ({"GPU": g.gpus} if g.gpus else {}), g.workers) for g in gangs]
        bundles = sorted((shape for shape, workers in shapes for _ in range(workers)), key=str)
        if bundles != self._asked:
            _log.info("asks for nodes with room for %d workers", len(bundles))
            request_resources(bundles=bundles)
            self._asked = bundles

"""A gRPC server that answers as the GCS of a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
from ray.core.generated import gcs_service_pb2 as messages
from ray.core.generated import gcs_service_pb2_grpc as services


class _Service(services.NodeInfoGcsServiceServicer):  # type: ignore[misc]  # generated
    def __init__(self, version: str) -> None:
        self._version = version

    def CheckAlive(self, *_: object) -> object:  # noqa: N802  # generated
        return messages.CheckAliveReply(ray_version=self._version)  # type: ignore[attr-defined]


@contextmanager
def answering_gcs(version: str) -> Iterator[str]:
    """Yield the address of the GCS of a cluster with this version of Ray."""
    server = grpc.server(ThreadPoolExecutor(1))
    services.add_NodeInfoGcsServiceServicer_to_server(_Service(version), server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()

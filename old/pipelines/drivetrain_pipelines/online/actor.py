"""The transforming actor: reads shards, applies the user's transform and serves batches over Arrow Flight.

It keeps no state. What it serves depends on the ticket alone, so any actor can replace any other at any batch.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.flight as fl
import ray
import ray.util
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from drivetrain_pipelines.errors import DrivetrainError, TransformError
from drivetrain_pipelines.online.transform import OnlineTransform
from drivetrain_pipelines.online.wire import Endpoints, Refusal, Ticket, to_arrow, unseal
from drivetrain_pipelines.spec import DataSpec
from drivetrain_pipelines.storage.json_files import JsonObject
from drivetrain_pipelines.stream.dataset import open_dataset
from drivetrain_pipelines.stream.reader import StreamReader
from drivetrain_pipelines.user_code import load_function

_log = logging.getLogger(__name__)
_RETRY_DELAY_S = 2.0  # before an actor that could not start is restarted


class TransformServer(fl.FlightServerBase):  # type: ignore[misc]  # pyarrow has no types
    """Arrow Flight server for the transformed batches of one run. It listens as soon as it is constructed.

    Args:
        host: address to listen on.
        token: key that requests are sealed with; see `drivetrain_pipelines.online.wire.seal`.
        location: prepared dataset version.
        data: ``data`` section of the job, with ``online``.
        seed: seed of the job.
        code_folder: directory of the user's code.
    """

    def __init__(self, host: str, token: str, location: str, data: DataSpec, seed: int, code_folder: str) -> None:
        assert data.online
        function = load_function(data.online.transform, code_folder, "data.online.transform")
        self._token = token
        self._transform = OnlineTransform(function, seed)
        self._dataset = open_dataset(location, data)
        self._order = self._dataset.training_order(data, seed)
        super().__init__(f"grpc://{host}:0")

    def do_exchange(self, _: Any, request: fl.FlightDescriptor, __: Any, writer: fl.FlightStreamWriter) -> None:
        """Stream the batches that a `Ticket` requests, each with its global position.

        This is an exchange because, unlike with `do_get`, the client can cancel before the first batch arrives.
        """
        content, proof = self._unseal(request.command)
        try:
            self._serve(Ticket(**content), proof, writer)
        except DrivetrainError as error:  # of data or user code: other actors would fail alike
            refusal = Refusal(type(error).__name__, str(error))
            raise fl.FlightServerError(refusal.message[:200], refusal.encode()) from error

    def do_action(self, _: Any, action: fl.Action) -> list[bytes]:
        """Answer ``ping`` with the proof that this process is alive and belongs to the run."""
        _, proof = self._unseal(action.body.to_pybytes())
        return [proof.encode()]

    def _unseal(self, request: bytes) -> tuple[JsonObject, str]:
        try:
            return unseal(self._token, request)
        except PermissionError as error:
            raise fl.FlightUnauthenticatedError(str(error)) from error

    def _serve(self, ticket: Ticket, proof: str, writer: fl.FlightStreamWriter) -> None:
        rows = slice(ticket.first_row, ticket.last_row)
        ranks = ticket.global_batch // max(1, ticket.last_row - ticket.first_row)  # that stream from here, about
        arena, files = self._dataset.open("train", ranks)
        reader = StreamReader(arena, files, self._order, ticket.global_batch, rows, ticket.start, ticket.every)
        try:
            for batch in reader:
                positions = self._order.positions(batch.position, ticket.global_batch, rows)
                made = to_arrow(self._transform.apply(batch.columns, positions))
                if batch.position == ticket.start:
                    schema = made.schema
                    writer.begin(schema)
                elif made.schema != schema:
                    raise TransformError("data.online.transform returned samples of another type or shape than before")
                writer.write_with_metadata(made, pa.py_buffer(f"{batch.position} {proof}".encode()))
        finally:  # also when the rank has disconnected
            reader.close()
            arena.close()


class TransformActor:
    """Ray actor on one CPU. Ray restarts it when it dies; ranks find it again through its endpoint.

    Args:
        number: index of this actor among the actors of the run.
        endpoints: folder where the actor publishes its address.
        all_nodes: listen on the address of this node; otherwise on loopback only.
    """

    def __init__(
        self, number: int, endpoints: str, all_nodes: bool, location: str, data: DataSpec, seed: int, code_folder: str
    ) -> None:
        host: str = ray.util.get_node_ip_address() if all_nodes else "127.0.0.1"  # type: ignore[no-untyped-call]
        registry = Endpoints(Path(endpoints))
        try:
            token = registry.token
            self._server = TransformServer(host, token, location, data, seed, code_folder)
            threading.Thread(target=self._server.serve, name="flight", daemon=True).start()
            registry.publish(number, f"{host}:{self._server.port}", token)
        except Exception:  # Ray restarts a process that died, but not one whose constructor failed
            _log.exception("transforming actor %d could not start", number)
            time.sleep(_RETRY_DELAY_S)
            os._exit(1)


def start_transformers(
    endpoints: Path, cpus: int, all_nodes: bool, location: str, data: DataSpec, seed: int, code_folder: Path
) -> list[Any]:
    """Start a run's actors; they end with the process that holds the handles.

    Args:
        endpoints: folder for `Endpoints`, which are created here.
        cpus: CPUs that each actor reserves; 0 if they share the CPUs of the ranks.
        all_nodes: start them on all nodes; otherwise on this one.
    """
    assert data.online
    Endpoints(endpoints).create()
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    strategy = "SPREAD" if all_nodes else here
    actor: Any = ray.remote(TransformActor)
    actor = actor.options(num_cpus=cpus, max_restarts=-1, scheduling_strategy=strategy)
    return [
        actor.remote(number, str(endpoints), all_nodes, location, data, seed, str(code_folder))
        for number in range(data.online.actors)
    ]

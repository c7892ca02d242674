"""The hardware of the workers of a Ray cluster."""

from __future__ import annotations

import ray
from drivetrain_pipelines.errors import InputError

from drivetrain.planning.hardware import Hardware, gpu

_KIND = "accelerator_type:"  # prefix of the resource with which Ray names the GPU type


def hardware_for(workers: int, cpus_per_worker: int, gpus_per_worker: int) -> Hardware:
    """Return the hardware of the given workers on the smallest suitable nodes of the cluster.

    Raises:
        InputError: Ray does not report the GPU type, or the type is unknown.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]  # Ray's
    suitable = [
        node for node in nodes if node.get("CPU", 0) >= cpus_per_worker and node.get("GPU", 0) >= gpus_per_worker
    ]
    worker_bytes = min((node["memory"] * cpus_per_worker / node["CPU"] for node in suitable), default=0.0)
    if not gpus_per_worker:
        return Hardware(workers, 1, None, worker_bytes)
    kinds = sorted({name.removeprefix(_KIND) for node in suitable for name in node if name.startswith(_KIND)})
    if not kinds:
        raise InputError(
            "training.zero_stage", "'auto'", "a number, because Ray does not report the GPU type of the nodes"
        )
    least = min((gpu(kind, "GPU of a node") for kind in kinds), key=lambda device: device.memory_bytes)
    per_node = min(int(node["GPU"]) for node in suitable)
    return Hardware(workers, -(-workers // per_node), least, worker_bytes)

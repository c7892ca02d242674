"""What the workers of a Ray cluster would compute on."""

from __future__ import annotations

import ray
from drivetrain_pipelines.errors import InputError

from drivetrain.planning.hardware import Hardware, gpu

_KIND = "accelerator_type:"  # resources by which Ray tells the kinds of GPUs


def hardware_for(workers: int, cpus_per_worker: int, gpus_per_worker: int) -> Hardware:
    """What so many workers would have on the least of the cluster's nodes that could hold one.

    Raises:
        InputError: Ray does not tell what kind of GPUs there are, or nothing is known of that kind.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]  # Ray's
    able = [node for node in nodes if node.get("CPU", 0) >= cpus_per_worker and node.get("GPU", 0) >= gpus_per_worker]
    worker_bytes = min((node["memory"] * cpus_per_worker / node["CPU"] for node in able), default=0.0)
    if not gpus_per_worker:
        return Hardware(workers, 1, None, worker_bytes)
    kinds = sorted({name.removeprefix(_KIND) for node in able for name in node if name.startswith(_KIND)})
    if not kinds:
        raise InputError("training.zero", "'auto'", "a number, where Ray does not know the kind of the nodes' GPUs")
    least = min((gpu(kind, "GPU of a node") for kind in kinds), key=lambda device: device.memory_bytes)
    per_node = min(int(node["GPU"]) for node in able)
    return Hardware(workers, -(-workers // per_node), least, worker_bytes)

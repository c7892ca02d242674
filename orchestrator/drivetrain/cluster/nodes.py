"""The nodes of the Ray cluster, as the scheduler sees them."""

from __future__ import annotations

import ray

from drivetrain.scheduling.model import Node


def usable_nodes() -> list[Node]:
    """The nodes that live, and which of them were told to leave (`ray drain-node`, or a cloud's notice)."""
    # Ray has no public way to ask; its own Train and Serve ask like this.
    draining = ray._private.state.state.get_draining_nodes()
    return [
        Node(
            node["NodeID"],
            node["Resources"].get("CPU", 0.0),
            node["Resources"].get("GPU", 0.0),
            node["NodeID"] in draining,
            node["NodeManagerAddress"],
        )
        for node in ray.nodes()  # type: ignore[no-untyped-call]  # Ray's
        if node["Alive"]
    ]

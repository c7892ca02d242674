"""A cluster file in Ray's format: its node groups and prices."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.storage.json_files import JsonObject
from jsonschema import ValidationError

from drivetrain.cluster.ray_internals import complete_cluster_config

_TYPE_KEYS = {"aws": "InstanceType", "gcp": "machineType", "azure": "azure_arm_parameters.vmSize"}
_PLACEHOLDER = re.compile(r"<[a-zA-Z][^<>]*(?<! )>")  # does not match shell redirections


@dataclass(frozen=True)
class NodeGroup:
    """Nodes of one machine type.

    Attributes:
        machine: machine type, as named by the cloud.
        least, most: minimum and maximum number of nodes.
        spot: whether they are spot machines.
        cpus, gpus: per node; None if only the cloud knows.
        price: maximum dollars per hour and node; None if unknown.
        config: node configuration of the cloud.
    """

    name: str
    machine: str
    least: int
    most: int
    spot: bool
    cpus: float | None
    gpus: float
    price: float | None
    config: JsonObject


class ClusterFile:
    """A cluster file for `ray up`, with Ray's defaults.

    Attributes:
        path: of the file.
        cloud: aws, gcp or azure.
        name: of the cluster.
        config: the complete content.

    Raises:
        InputError: the file cannot be read, is not valid, or contains a placeholder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        written = self._read()
        for section in ("provider", "available_node_types", "metadata"):
            if not isinstance(written.get(section), dict):
                raise InputError(f"{path}: {section}", repr(written.get(section))[:200], "keys and values")
        self.cloud = str(written["provider"].get("type"))
        if self.cloud not in _TYPE_KEYS:
            raise InputError(f"{path}: provider.type", repr(self.cloud), ", ".join(_TYPE_KEYS))
        region_key = "location" if self.cloud == "azure" else "region"
        if not isinstance(written["provider"].get(region_key), str):
            raise InputError(
                f"{path}: provider.{region_key}",
                repr(written["provider"].get(region_key)),
                "the region of the machines",
            )
        self._prices = self._read_prices(written["metadata"])
        for key, value in _leaves(written):
            if isinstance(value, str) and (found := _PLACEHOLDER.search(value)):
                raise InputError(f"{path}: {key}", found[0], "your value", "`terraform output` prints most values.")
        try:
            self.config = complete_cluster_config(written)
        except ValidationError as error:
            key = ".".join(str(part) for part in error.absolute_path)
            raise InputError(f"{path}: {key}", repr(error.instance)[:200], error.message[:300]) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(str(path), str(error)[:300], "a file that Ray's cluster launcher accepts") from error
        self.name: str = self.config["cluster_name"]

    @property
    def head(self) -> NodeGroup:
        """The head node."""
        return self._group(self.config["head_node_type"])

    @property
    def workers(self) -> list[NodeGroup]:
        """The groups from which the autoscaler may add nodes."""
        others = [name for name in self.config["available_node_types"] if name != self.config["head_node_type"]]
        return [self._group(name) for name in others]

    def hourly_price(self) -> tuple[float, float]:
        """Return the dollars per hour with the minimum and with the maximum number of nodes.

        Raises:
            InputError: the price of a machine type is unknown.
        """
        for group in (self.head, *self.workers):
            if group.price is None:
                key = f"{self.path}: metadata.price_per_hour.{group.machine}"
                raise InputError(
                    key, "nothing", "dollars per hour for this machine type, from the price list of your cloud"
                )
        prices = {group.name: group.price or 0.0 for group in self.workers}
        least = sum(group.least * prices[group.name] for group in self.workers)
        return (self.head.price or 0.0) + least, (self.head.price or 0.0) + self.most_of(prices)

    def most_of(self, each: Mapping[str, float]) -> float:
        """Return the maximum total of a quantity over all workers, given its value per node by group."""
        left, most = self.config["max_workers"], 0.0
        for group in sorted(self.workers, key=lambda group: each.get(group.name, 0.0), reverse=True):
            count = min(group.most, left)
            left -= count
            most += count * each.get(group.name, 0.0)
        return most

    def _read_prices(self, metadata: JsonObject) -> dict[str, float]:
        key, prices = f"{self.path}: metadata.price_per_hour", metadata.get("price_per_hour")
        if not isinstance(prices, dict):
            raise InputError(key, repr(prices), "dollars per hour by machine type")
        for machine, price in prices.items():
            if isinstance(price, bool) or not isinstance(price, int | float) or not price >= 0:
                raise InputError(f"{key}.{machine}", repr(price), "a number of dollars")
        return {str(machine): float(price) for machine, price in prices.items()}

    def _read(self) -> JsonObject:
        try:
            document = yaml.safe_load(self.path.read_text())
        except OSError as error:
            raise InputError("FILE", str(self.path), "a cluster file", error.strerror or "") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError(str(self.path), "text that is not YAML", "a cluster file", str(error)[:200]) from error
        if not isinstance(document, dict):
            raise InputError(str(self.path), type(document).__name__, "a cluster file")
        return document

    def _group(self, name: str) -> NodeGroup:
        found = self.config["available_node_types"][name]
        is_head = name == self.config["head_node_type"]
        node, resources = found["node_config"], found.get("resources", {})
        machine: Any = node
        for part in _TYPE_KEYS[self.cloud].split("."):
            machine = machine.get(part, {}) if isinstance(machine, dict) else {}
        if not isinstance(machine, str):
            key = f"{self.path}: available_node_types.{name}.node_config.{_TYPE_KEYS[self.cloud]}"
            raise InputError(key, repr(machine), "the name of a machine type")
        return NodeGroup(
            name,
            machine,
            1 if is_head else found["min_workers"],
            1 if is_head else found["max_workers"],
            _is_spot(node),
            resources.get("CPU"),
            resources.get("GPU", 0),
            self._prices.get(machine),
            node,
        )


def _is_spot(node: JsonObject) -> bool:
    market = (node.get("InstanceMarketOptions") or {}).get("MarketType") == "spot"
    scheduling = node.get("scheduling") or {}
    schedules = scheduling if isinstance(scheduling, list) else [scheduling]
    preemptible = any(entry.get("preemptible") or entry.get("provisioningModel") == "SPOT" for entry in schedules)
    return market or preemptible or (node.get("azure_arm_parameters") or {}).get("priority") == "Spot"


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every leaf of a document with its key."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _leaves(inner, f"{key}.{number}")
    else:
        yield key, value

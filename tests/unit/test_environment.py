"""The command in unusual environments: one line instead of a traceback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from drivetrain.api.client import Client
from drivetrain.home import Home
from drivetrain_pipelines.errors import InputError

from tests.unit.runs import home_in, make_run

COMMAND = Path(sys.executable).with_name("drivetrain")
UNUSUAL = [
    {"LANG": "C", "LC_ALL": "C"},
    {"PYTHONIOENCODING": "ascii"},
    {"TERM": "dumb"},
    {"TERM": "nonsense", "COLUMNS": "1", "LINES": "1"},
    {"ALL_PROXY": "socks5://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"},
    {"RAY_ADDRESS": "http://127.0.0.1:8265"},
    {"TMPDIR": "/nowhere"},
]


def run(
    *words: str, shell: str = "", cwd: Path | None = None, **variables: str | None
) -> subprocess.CompletedProcess[str]:
    """Run the command, in a shell to redirect its streams; a variable that is None is unset."""
    environment = {**os.environ, **{name: value for name, value in variables.items() if value is not None}}
    for name in [name for name, value in variables.items() if value is None]:
        environment.pop(name, None)
    line = ["sh", "-c", f'"$@" {shell}', "-", str(COMMAND), *words]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False, cwd=cwd, timeout=100)
    assert "Traceback" not in done.stderr, done.stderr
    assert "Exception ignored" not in done.stderr, done.stderr
    return done


def one_error(done: subprocess.CompletedProcess[str]) -> str:
    """Return the error of a command that has failed, which is one line."""
    assert done.returncode in (1, 2), done
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a home with many runs, with a name that few encodings have."""
    folder = tmp_path_factory.mktemp("homes") / "hé 中%3F?#"
    with pytest.MonkeyPatch.context() as patch:
        home = home_in(folder, patch)
        for number in range(60):
            make_run(home, f"toy-{number}")
    return str(folder)


# Streams ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", [("list",), ("list", "--json"), ("schema",), ("--help",), ("recipes",), ("--version",)]
)
def test_output_that_cannot_be_written_is_an_error(words: tuple[str, ...], home: str) -> None:
    done = run(*words, shell=">/dev/full", DRIVETRAIN_HOME=home)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: No space left on device"


@pytest.mark.parametrize("words", [("list", "--all"), ("list", "--json"), ("schema",), ("--help",)])
def test_a_closed_pipe_ends_the_command_silently(words: tuple[str, ...], home: str) -> None:
    done = run(*words, shell="| head -1", DRIVETRAIN_HOME=home)
    assert len(done.stdout.splitlines()) == 1
    assert not [line for line in done.stderr.splitlines() if not line.startswith(("local", "only the newest"))]


@pytest.mark.parametrize("streams", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_streams_may_be_closed(streams: str, home: str) -> None:
    done = run("list", shell=streams, DRIVETRAIN_HOME=home)
    assert done.returncode == 0, done
    assert ("toy-1" in done.stdout) == (">&-" not in streams.split())


@pytest.mark.parametrize("variables", UNUSUAL, ids=str)
def test_every_environment_gets_an_answer(variables: dict[str, str], home: str) -> None:
    done = run("list", "--json", **variables, DRIVETRAIN_HOME=home)
    assert done.returncode == 0, done.stderr
    assert len([json.loads(line) for line in done.stdout.splitlines()]) == 50
    without_term = run("list", "--limit", "1", **{"TERM": None, **variables}, DRIVETRAIN_HOME=home)
    assert without_term.returncode == 0, without_term.stderr
    invalid = run("validate", "nothing-é", **variables, DRIVETRAIN_HOME=home)
    assert one_error(invalid).startswith("JOB: got ")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_stays_json_in_every_encoding(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(
        'name: toy\ndata: {source: "s.txt"}\nmodel: {factory: "m:f"}\n'
        'training: {steps: 1}\nsample: {prompt: "é 中 😀"}\n'
    )
    (tmp_path / "s.txt").write_text("text")
    (tmp_path / "m.py").write_text("def f(): ...\n")
    done = run("validate", str(tmp_path), "--json", PYTHONIOENCODING=encoding, DRIVETRAIN_HOME=str(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["job"]["sample"]["prompt"] == "é 中 😀"


@pytest.mark.parametrize("locale", ["C", "POSIX", "de_DE.ISO-8859-1"])
def test_a_locale_without_a_character_is_named(locale: str, home: str, tmp_path: Path) -> None:
    ascii_only = {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    error = one_error(run("list", **ascii_only, DRIVETRAIN_HOME=home))
    assert error.startswith("DRIVETRAIN_HOME: got ")
    assert error.endswith("Or set LC_ALL=C.UTF-8 for this one.")
    assert run("list", **ascii_only, DRIVETRAIN_HOME=str(tmp_path)).returncode == 0
    assert one_error(run("validate", "nothing-é", **ascii_only)).startswith("JOB: got ")


# Folders ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("/dev/null", "File exists"),
        ("/dev/null/x", "Not a directory"),
        ("/proc/x", "No such file or directory"),
        ("~no-such-user/x", "home"),
        ("x" * 300, "File name too long"),
        ("/tmp/\udcff", "a path in UTF-8"),
    ],
)
def test_a_home_that_cannot_be_used_is_one_error(value: str, said: str) -> None:
    for words in (("list",), ("data", "gc"), ("token", "list")):
        error = one_error(run(*words, DRIVETRAIN_HOME=value))
        assert error.startswith("DRIVETRAIN_HOME: got ")
        assert said in error


def test_a_home_that_is_read_only(tmp_path: Path) -> None:
    """A mount is read-only for root, too."""
    words = f'mount -t tmpfs -o ro none {tmp_path}; DRIVETRAIN_HOME={tmp_path} "$@"'
    command = ["unshare", "-rm", "bash", "-c", words, "-", str(COMMAND), "list"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unshare" in done.stderr:
        pytest.skip("user namespaces are not available")
    assert one_error(done).endswith("It is read-only, or belongs to another user.")


def test_a_home_on_a_full_disk(tmp_path: Path) -> None:
    words = f'mount -t tmpfs -o size=4k none {tmp_path}; dd if=/dev/zero of={tmp_path}/x status=none; "$@"'
    command = ["unshare", "-rm", "bash", "-c", words, "-", "env", f"DRIVETRAIN_HOME={tmp_path}", str(COMMAND), "list"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unshare" in done.stderr:
        pytest.skip("user namespaces are not available")
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize("value", ["", None])
def test_an_empty_home_is_the_default(value: str | None, tmp_path: Path) -> None:
    done = run("list", HOME=str(tmp_path / "user"), DRIVETRAIN_HOME=value, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "user" / ".drivetrain" / "drivetrain.db").is_file()
    assert list(tmp_path.iterdir()) == [tmp_path / "user"]


def test_without_a_home_of_the_user_the_home_is_that_of_the_password_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    assert Path("~").expanduser().is_absolute()
    done = run("--version", HOME=None)
    assert done.returncode == 0


def test_a_relative_home_is_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRIVETRAIN_HOME", "mine")
    assert Home.from_environment().path == tmp_path / "mine"


def test_a_deleted_current_folder_is_named(tmp_path: Path, home: str) -> None:
    gone = tmp_path / "gone"
    words = f'cd {gone}; rmdir {gone}; "$@"'
    for arguments, said in (
        (("list",), None),
        (("--help",), None),
        (("validate", "job.yaml"), "job.yaml"),
        (("init", "language-model", "mine"), "the current folder was deleted"),
    ):
        gone.mkdir()
        line = ["sh", "-c", words, "-", str(COMMAND), *arguments]
        done = subprocess.run(
            line, env={**os.environ, "DRIVETRAIN_HOME": home}, capture_output=True, text=True, check=False
        )
        assert "Traceback" not in done.stderr, done.stderr
        if said is None:
            assert done.returncode == 0, done.stderr
        else:
            assert said in one_error(done)


# Proxies ----------------------------------------------------------------------------------------------------------


def test_a_server_on_this_machine_needs_no_proxy(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    for proxy in ("socks5://127.0.0.1:9", "nonsense://x", "http://127.0.0.1:9"):
        monkeypatch.setenv("ALL_PROXY", proxy)
        with Client(f"http://127.0.0.1:{port}", token="x") as client:
            assert client.server
    monkeypatch.setenv("ALL_PROXY", "nonsense://x")
    with pytest.raises(InputError, match="ALL_PROXY: got a proxy; allowed: http://"):
        Client("http://example.invalid", token="x")

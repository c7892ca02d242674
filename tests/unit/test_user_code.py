"""Functions that a job names."""

from __future__ import annotations

import builtins
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from drivetrain_pipelines.errors import FetchError, InputError, PrepareError, UserCodeError
from drivetrain_pipelines.user_code import guarded, load_function, raised_by_us, user_code_error
from hypothesis import given
from hypothesis import strategies as st


@pytest.fixture(autouse=True)
def _own_imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Remove the modules that a test has imported."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def code(tmp_path: Path) -> str:
    (tmp_path / "user_nets").mkdir()
    (tmp_path / "user_nets" / "__init__.py").touch()
    (tmp_path / "user_nets" / "deep.py").write_text("def net(width):\n    return [0] * width\n")
    (tmp_path / "user_train.py").write_text(
        "from user_nets.deep import net\n\nWIDTH = 3\n_hidden = 1\n\ndef loss(model):\n    return len(model)\n"
    )
    (tmp_path / "user_empty.py").write_text("")
    (tmp_path / "user_needy.py").write_text("import user_library_that_is_not_installed\n")
    (tmp_path / "user_broken.py").write_text("raise ValueError('of the user')\n")
    return str(tmp_path)


def test_modules_and_packages_of_the_code(code: str) -> None:
    assert load_function("user_nets.deep:net", code, "model.factory")(2) == [0, 0]
    assert load_function("user_train:net", code, "model.factory")(1) == [0]  # imported there
    assert load_function("user_train:loss", code, "model.loss")("four") == 4
    assert sys.path.count(code) == 1


def test_code_written_after_a_failed_import(tmp_path: Path) -> None:
    code = tmp_path / "code"
    with pytest.raises(InputError, match="No module named 'user_late'"):
        load_function("user_late:loss", str(code), "model.loss")
    code.mkdir()
    (code / "user_late.py").write_text("def loss(model):\n    return 1\n")
    assert load_function("user_late:loss", str(code), "model.loss")(None) == 1


def test_installed_packages(code: str) -> None:
    assert load_function("json:dumps", code, "data.transform")([1]) == "[1]"


def test_the_jobs_module_takes_precedence(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / "user_train.py").write_text("def loss(model):\n    return -1\n")
    monkeypatch.syspath_prepend(str(other))
    assert load_function("user_train:loss", code, "model.loss")("four") == 4


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("user_missing:net", r"allowed: a module importable from .*No module named 'user_missing'"),
        ("user_nets.wide:net", "No module named 'user_nets.wide'"),
        ("user_needy:net", "No module named 'user_library_that_is_not_installed'"),
        ("user_train:nett", r"a function of .*user_train\.py.*It defines WIDTH, loss, net\."),
        ("user_train:WIDTH", r"a function of .*user_train\.py"),
        ("user_empty:net", r"It defines nothing\."),
    ],
)
def test_missing_modules_and_functions_are_reported(code: str, path: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem) as caught:
        load_function(path, code, "model.factory")
    assert (caught.value.where, caught.value.given) == ("model.factory", repr(path))


def test_an_error_of_the_users_module_names_its_line(code: str) -> None:
    with pytest.raises(UserCodeError) as caught:
        load_function("user_broken:net", code, "model.factory")
    assert str(caught.value) == "model.factory raised ValueError: of the user (user_broken.py:1, in <module>)"


@pytest.mark.parametrize("source", ["import sys\nsys.exit(0)\n", "raise KeyboardInterrupt\n", "x = 1 / 0\n"])
def test_no_import_ends_the_process(tmp_path: Path, source: str) -> None:
    (tmp_path / "user_ending.py").write_text(source)
    with pytest.raises(UserCodeError, match=r"model\.loss raised .* \(user_ending\.py:[12]"):
        load_function("user_ending:loss", str(tmp_path), "model.loss")


def test_code_that_is_no_python_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "user_invalid.py").write_text("def net(:\n")
    with pytest.raises(InputError, match=r"allowed: valid Python code. invalid syntax \(user_invalid\.py:1"):
        load_function("user_invalid:net", str(tmp_path), "model.loss")


class _UnspeakableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError


# Every exception that a Python program can meet without making it: built-in ones, and some of libraries and of users.
_EXCEPTIONS = [
    kind
    for kind in vars(builtins).values()
    if isinstance(kind, type) and issubclass(kind, BaseException) and not issubclass(kind, Warning | BaseExceptionGroup)
]
_EXCEPTIONS += [_UnspeakableError, PrepareError, FetchError, json.JSONDecodeError, subprocess.CalledProcessError]
_ARGUMENTS: dict[type[BaseException], tuple[object, ...]] = {
    UnicodeDecodeError: ("utf8", b"a", 0, 1, "odd"),
    UnicodeEncodeError: ("utf8", "a", 0, 1, "odd"),
    UnicodeTranslateError: ("a", 0, 1, "odd"),
    FetchError: ("s3://b/x", 3, "cut"),
    json.JSONDecodeError: ("odd", "{", 0),
    subprocess.CalledProcessError: (3, "ls"),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """A job's code, and a library, with functions that raise, or call something that raises, at known lines."""
    code, library = tmp_path_factory.mktemp("code"), tmp_path_factory.mktemp("library")
    (library / "their_library.py").write_text(
        "def run(error, call=None):\n    if call:\n        return call(error)\n    raise error\n"
    )
    (code / "their_job.py").write_text(
        "import their_library\n"
        "def user(error):\n    raise error\n"
        "def library(error):\n    their_library.run(error)\n"
        "def between(error):\n    their_library.run(error, user)\n"
        "def lazy(error):\n    yield 1\n    raise error\n"
    )
    paths = [str(library), str(code)]
    sys.path[:0] = paths
    try:
        import their_job

        return str(code), {**vars(their_job), "elsewhere": their_job.their_library.run}
    finally:
        for path in paths:
            sys.path.remove(path)


@given(
    st.sampled_from(_EXCEPTIONS),
    st.sampled_from(
        [
            ("user", "their_job.py:3, in user"),
            ("library", "their_job.py:5, in library"),
            ("between", "their_job.py:3, in user"),
        ]
    ),
    st.booleans(),
)
def test_whose_code_raised_it_decides_not_the_type(
    places: tuple[str, dict[str, Any]], kind: type[BaseException], place: tuple[str, str], named: bool
) -> None:
    """An exception that leaves the job's code belongs to it: called as the job names it, or on another way."""
    folder, functions = places
    function, where = place
    error = kind(*_ARGUMENTS.get(kind, ("odd",)))
    if named and kind is MemoryError:
        with pytest.raises(MemoryError):
            guarded(functions[function], "model.loss", folder)(error)
    elif named:
        with pytest.raises(UserCodeError) as caught:
            guarded(functions[function], "model.loss", folder)(error)
        assert (caught.value.key, caught.value.where, caught.value.__cause__) == ("model.loss", where, error)
        assert caught.value.problem.startswith(kind.__name__)
        assert "\n" not in str(caught.value)
    else:
        with pytest.raises(kind):
            functions[function](error)
        found = user_code_error(error, folder)
        assert found
        assert (found.where, found.__cause__) == (where, error)


@given(st.sampled_from(_EXCEPTIONS))
def test_an_exception_that_met_no_code_of_the_job_is_not_of_it(
    places: tuple[str, dict[str, Any]], kind: type[BaseException]
) -> None:
    folder, functions = places
    error = kind(*_ARGUMENTS.get(kind, ("odd",)))
    with pytest.raises(kind):
        functions["elsewhere"](error)
    assert user_code_error(error, folder) is None
    assert not raised_by_us(error)


def test_a_function_of_a_library_that_the_job_names_is_of_the_job(places: tuple[str, dict[str, Any]]) -> None:
    folder, functions = places
    with pytest.raises(UserCodeError, match=r"data\.transform raised OSError: odd \(.*their_library\.py:4, in run\)"):
        guarded(functions["elsewhere"], "data.transform", folder)(OSError("odd"))
    with pytest.raises(UserCodeError, match=r"TypeError: run\(\) missing 1 required .*their_library\.py:1\)"):
        guarded(functions["elsewhere"], "data.transform", folder)()
    with pytest.raises(UserCodeError, match=r"data\.reader raised TypeError: .*'y' is an invalid keyword"):
        guarded(sorted, "data.reader", folder)([1], y=2)


def test_an_iterator_of_the_job_is_guarded_to_its_end(places: tuple[str, dict[str, Any]]) -> None:
    folder, functions = places
    items = guarded(functions["lazy"], "data.reader", folder)(StopIteration("odd"))
    assert next(items) == 1
    with pytest.raises(UserCodeError, match=r"data\.reader raised RuntimeError: generator raised StopIteration"):
        next(items)


def test_our_own_errors_keep_their_type(tmp_path: Path) -> None:
    def ours(error: BaseException) -> None:
        exec("raise error", {"__name__": "drivetrain_workers.somewhere", "error": error})

    error = FetchError("s3://b/x", 3, "cut")
    with pytest.raises(FetchError):
        guarded(ours, "model.loss", str(tmp_path))(error)
    assert raised_by_us(error)
    with pytest.raises(UserCodeError):  # but a wrong call of our code is a mistake of its caller
        guarded(ours, "model.loss", str(tmp_path))(KeyError("x"))

"""Functions that a job names."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.user_code import load_function


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


def test_an_error_of_the_users_module_is_raised_unchanged(code: str) -> None:
    with pytest.raises(ValueError, match="of the user"):
        load_function("user_broken:net", code, "model.factory")

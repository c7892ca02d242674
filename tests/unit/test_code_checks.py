"""The functions that a job names are found by parsing its code, which never runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from drivetrain.job import modules
from drivetrain.job.code_checks import CodeChecks
from drivetrain.job.code_files import read_code
from drivetrain.job.modules import Modules
from drivetrain_pipelines.errors import InputError


def checks_of(folder: Path) -> CodeChecks:
    return CodeChecks(Modules(read_code(folder)))


def check_function(key: str, path: str, folder: Path) -> None:
    checks_of(folder).check_function(key, path)


def refused(path: str, folder: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        check_function("model.factory", path, folder)
    assert caught.value.where == "model.factory"
    assert caught.value.given == repr(path)
    return caught.value


@pytest.mark.parametrize(
    "code",
    [
        "def make(): ...",
        "class make: ...",
        "make = print",
        "from os.path import join as make",
        "from os.path import *",
        "if True:\n    def make(): ...",
        "try:\n    from fast import make\nexcept ImportError:\n    def make(): ...",
        "make: object = print",
        "make, other = print, print",
        "def __getattr__(name): ...",
        "import sys\n\ndef make(): ...\nsys.exit('it was run')",
    ],
)
def test_a_function_is_found_and_not_run(code: str, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(code)
    check_function("model.factory", "model:make", tmp_path)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def make_it(): ...", "Did you mean model:make_it?"),
        ("import make", "a function of"),
        ("def outer():\n    def make(): ...", "a function of"),
        ("", "none"),
        ("def make(:", "model.py:1"),
        ("import not_there_at_all\ndef make(): ...", "not_there_at_all is not installed; Install not_there_at_all."),
        ("from not_there_at_all.inner import x\ndef make(): ...", "not_there_at_all is not installed"),
    ],
)
def test_a_function_that_is_not_there(code: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(code)
    error = refused("model:make", tmp_path)
    assert all(part in f"{error.allowed}; {error.fix}" for part in said.split("; ")), str(error)


def test_modules_of_folders_are_found(tmp_path: Path) -> None:
    (tmp_path / "net" / "deep").mkdir(parents=True)
    (tmp_path / "net" / "__init__.py").write_text("def shallow(): ...")
    (tmp_path / "net" / "deep" / "layers.py").write_text("from . import x\ndef make(): ...")
    check_function("model.factory", "net:shallow", tmp_path)
    check_function("model.factory", "net.deep.layers:make", tmp_path)
    assert "a function of" in refused("net:make", tmp_path).allowed


def test_a_module_may_be_installed_or_ours(tmp_path: Path) -> None:
    check_function("model.factory", "yaml:safe_load", tmp_path)
    check_function("model.loss", "drivetrain_workers.classification:loss", tmp_path)
    assert refused("nowhere:make", tmp_path).fix == "Module nowhere does not exist."
    assert (
        refused("drivetrain_workers.nowhere:make", tmp_path).fix == "Module drivetrain_workers.nowhere does not exist."
    )


def test_a_module_may_not_hide_one_of_pythons(tmp_path: Path) -> None:
    (tmp_path / "random.py").write_text("def make(): ...")
    assert refused("random:make", tmp_path).fix == f"Rename {tmp_path / 'random.py'}."


def test_imports_of_other_files_of_the_job_are_checked(tmp_path: Path) -> None:
    """Also with circular imports, and with a file that cannot be parsed."""
    (tmp_path / "model.py").write_text("import layers\ndef make(): ...")
    (tmp_path / "layers.py").write_text("import model, broken, os\nimport not_there_at_all")
    (tmp_path / "broken.py").write_text("\ndef (")
    assert refused("model:make", tmp_path).fix == f"{tmp_path / 'broken.py'}:2: invalid syntax"
    (tmp_path / "broken.py").write_text("")
    assert "layers.py:2 imports it" in refused("model:make", tmp_path).allowed
    (tmp_path / "not_there_at_all").mkdir()  # Python does not import an empty folder from a snapshot
    assert "not_there_at_all is not installed" in refused("model:make", tmp_path).allowed
    (tmp_path / "not_there_at_all" / "inner.py").touch()
    check_function("model.factory", "model:make", tmp_path)


def test_imports_within_functions_are_the_users_affair(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("def make():\n    import not_there_at_all")
    check_function("model.factory", "model:make", tmp_path)


def test_missing_recipe_packages_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modules, "_RECIPE_PACKAGES", ("not_there_at_all",))
    (tmp_path / "model.py").write_text("import not_there_at_all\ndef make(): ...")
    assert "drivetrain[recipes]" in refused("model:make", tmp_path).fix


def check(folder: Path, code: str, args: dict[str, int] | None = None, files: tuple[str, ...] = ()) -> None:
    (folder / "model.py").write_text(code)
    checks_of(folder).check_factory("model:make", args or {}, files, ("vocab_size", "classes"))


@pytest.mark.parametrize(
    "code",
    [
        "def make(width, vocab_size): ...",
        "def make(vocab_size, classes, width=1): ...",
        "def make(*, width): ...",
        "def make(**settings): ...",
        "def make(width): ...\ndef make(): ...\nmake = 1",
        "from elsewhere import make",
    ],
)
def test_a_factory_that_accepts_its_arguments(code: str, tmp_path: Path) -> None:
    check(tmp_path, code, {"width": 8})


@pytest.mark.parametrize(
    ("code", "where", "said"),
    [
        ("def make(): ...", "model.args.width", "an argument of model:make ()"),
        ("def make(widths): ...", "model.args.width", "Did you mean widths?"),
        ("def make(width, depth): ...", "model.args", "no depth"),
        ("def make(width, *, depth, vocab_size): ...", "model.args", "no depth"),
        ("def make(): ...\ndef make(width, heads): ...", "model.args", "no heads"),
    ],
)
def test_a_factory_with_other_arguments(code: str, where: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        check(tmp_path, code, {"width": 8})
    assert caught.value.where == where
    assert said in str(caught.value)


def test_files_are_arguments_too(tmp_path: Path) -> None:
    check(tmp_path, "def make(weights): ...", files=("weights",))
    with pytest.raises(InputError) as caught:
        check(tmp_path, "def make(weight): ...", files=("weights",))
    assert caught.value.where == "model.files.weights"
    assert caught.value.fix == "Did you mean weight?"


def test_a_factory_of_an_installed_module_is_not_looked_into(tmp_path: Path) -> None:
    checks_of(tmp_path).check_factory("yaml:safe_load", {"anything": 1}, (), ())


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def loss(model, batch): ...", None),
        ("def loss(model, batch, context): ...", None),
        ("def loss(model, batch, *, context=None): ...", None),
        ("def loss(*arguments): ...", None),
        ("def loss(model, batch, scale=1): ...", None),
        ("class loss:\n    def __init__(self, model, batch): ...", None),
        ("from functools import partial\nloss = partial(print, 1)", None),
        ("def loss(batch): ...", "loss(batch)"),
        ("def loss(model, batch, targets): ...", "loss(model, batch, targets)"),
        ("def loss(model, batch, *, scale): ...", "loss(model, batch, scale)"),
        ("def loss(model, context): ...", "loss(model, context)"),
        ("class loss:\n    def __init__(self, model): ...", "loss(model)"),
    ],
)
def test_a_function_must_take_what_it_gets(code: str, said: str | None, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(code)
    check = checks_of(tmp_path).check_call
    if said is None:
        check("model.loss", "model:loss", ("model", "batch"), ("context",))
        return
    with pytest.raises(InputError) as caught:
        check("model.loss", "model:loss", ("model", "batch"), ("context",))
    assert (caught.value.where, caught.value.given) == ("model.loss", f"model:{said}")
    assert caught.value.allowed == "a function that can be called with (model, batch)"


def test_a_class_is_a_factory(tmp_path: Path) -> None:
    check(tmp_path, "class make:\n    def __init__(self, width): ...", {"width": 8})
    with pytest.raises(InputError, match=r"Did you mean widths\?"):
        check(tmp_path, "class make:\n    def __init__(self, widths): ...", {"width": 8})
    check(tmp_path, "import dataclasses\n@dataclasses.dataclass\nclass make:\n    width: int", {"width": 8})

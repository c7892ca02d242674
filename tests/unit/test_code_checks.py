"""The functions that a job names are found by parsing its code, which never runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from drivetrain.job import code_checks
from drivetrain.job.code_checks import check_arguments, check_function
from drivetrain_pipelines.errors import InputError


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
        ("if True:\n    def make(): ...", "a function of"),
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
    (tmp_path / "broken.py").write_text("def (")
    assert "not_there_at_all" in refused("model:make", tmp_path).allowed
    (tmp_path / "not_there_at_all").mkdir()
    check_function("model.factory", "model:make", tmp_path)


def test_imports_within_functions_are_the_users_affair(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("def make():\n    import not_there_at_all")
    check_function("model.factory", "model:make", tmp_path)


def test_missing_recipe_packages_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_checks, "_RECIPE_PACKAGES", ("not_there_at_all",))
    (tmp_path / "model.py").write_text("import not_there_at_all\ndef make(): ...")
    assert "drivetrain[recipes]" in refused("model:make", tmp_path).fix


def check(folder: Path, code: str, args: dict[str, int] | None = None, files: tuple[str, ...] = ()) -> None:
    (folder / "model.py").write_text(code)
    check_arguments("model:make", folder, args or {}, files, ("vocab_size", "classes"))


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
    check_arguments("yaml:safe_load", tmp_path, {"anything": 1}, (), ())

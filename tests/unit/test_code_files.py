"""The files that are the code of a job, and the same code at every place: validated, packed, copied, imported."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from drivetrain.api.runs import validate
from drivetrain.home import Home
from drivetrain.job import bundle, code_files
from drivetrain.job.code_files import Code, Why, read_code
from drivetrain.job.loading import check_code_to_send, load_job, names_of_data, names_of_outputs, read_document
from drivetrain.job.snapshots import store_code, stored_code, temporary_snapshot
from drivetrain_pipelines.errors import CorruptFileError, InputError
from drivetrain_pipelines.user_code import files_of
from drivetrain_workers.records.run_folder import RunFolder
from hypothesis import given
from hypothesis import strategies as st

JOB = {
    "name": "toy",
    "data": {"source": "data.csv", "columns": ["x"]},
    "model": {"factory": "model:make"},
    "training": {"steps": 1},
}
MAKE = "def make():\n    return 'made'\n"


def job(folder: Path, files: dict[str, str], factory: str = "model:make") -> Path:
    """Write a job and its files; return its folder."""
    for name, text in {"data.csv": "x\n1\n", **files}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "job.yaml").write_text(yaml.safe_dump(JOB | {"model": {"factory": factory}}))
    return folder


def made_by_python(folder: Path, factory: str) -> str:
    """Call a factory as a user tries it, in its folder."""
    module, _, function = factory.partition(":")
    return run_python(f"import {module}; print({module}.{function}())", folder)


def made_by_a_rank(code: Path, factory: str, elsewhere: Path) -> str:
    """Call a factory in a process that runs the code of a job, started in another folder."""
    program = (
        "from drivetrain_pipelines.user_code import load_function\n"
        f"print(load_function({factory!r}, {str(code)!r}, 'model.factory')())"
    )
    return run_python(program, elsewhere)


def run_python(program: str, folder: Path) -> str:
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else f"error: {done.stderr.strip().splitlines()[-1]}"


def unpacked(folder: Path, target: Path) -> Path:
    """Pack a job as `submit` does, and unpack it elsewhere as a server does."""
    _, document = read_document(folder / "job.yaml")
    _, content = bundle.pack(folder, "job.yaml", names_of_data(document), names_of_outputs(document))
    bundle.unpack(content, target)
    return target


LAYOUTS: dict[str, tuple[dict[str, str], str]] = {
    "module": ({"model.py": MAKE}, "model:make"),
    "file next to the module": (
        {
            "model.py": "from pathlib import Path\n"
            "def make():\n    return Path(__file__).with_name('config.json').read_text()\n",
            "config.json": "made",
        },
        "model:make",
    ),
    "file of the working directory": (
        {"model.py": "def make():\n    return open('config.json').read()\n", "config.json": "made"},
        "model:make",
    ),
    "file read by an import": ({"model.py": f"W = open('sub/w.txt').read()\n{MAKE}", "sub/w.txt": "1"}, "model:make"),
    "package": (
        {"net/__init__.py": "", "net/model.py": "from .layers import make\n", "net/layers.py": MAKE},
        "net.model:make",
    ),
    "package file": (
        {
            "net/__init__.py": "",
            "net/model.py": "from importlib.resources import files\n"
            "def make():\n    return files('net').joinpath('w.txt').read_text()\n",
            "net/w.txt": "made",
        },
        "net.model:make",
    ),
    "namespace package": (
        {"net/deep/model.py": "from net.layers import make\n", "net/layers.py": MAKE},
        "net.deep.model:make",
    ),
    "import inside a function": (
        {"model.py": "def make():\n    from helper import make\n    return make()\n", "helper.py": MAKE},
        "model:make",
    ),
    "odd names": ({"model.py": MAKE, "a b'\n☃.txt": "x"}, "model:make"),
    "other encodings": ({"model.py": f"\ufeff{MAKE}"}, "model:make"),
    "an optional import": (
        {"model.py": f"try:\n    import not_there\nexcept ImportError:\n    pass\n{MAKE}"},
        "model:make",
    ),
    "data as a module": ({"data.py": MAKE, "model.py": "from data import make\n"}, "model:make"),
    "a stray name of Python's": (
        {"model.py": f"import json\n{MAKE}", "code.py": "raise SystemExit('imported')"},
        "model:make",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_python_runs_runs_elsewhere(layout: str, tmp_path: Path) -> None:
    files, factory = LAYOUTS[layout]
    folder = job(tmp_path / "job", files, factory)
    assert made_by_python(folder, factory) == "made"
    here = validate(str(folder))
    package = unpacked(folder, tmp_path / "package")
    there = load_job(str(package / "job.yaml"), unpacked=True)
    assert there.code_version == here.code_version
    run = RunFolder(tmp_path / "run")
    store_code(there.code, run)
    folder.rename(tmp_path / "away")
    assert made_by_a_rank(run.code, factory, tmp_path) == "made"
    assert stored_code(run).contents == here.code.contents
    assert stored_code(run).version == run.code_version.read_text() == here.code_version


def test_the_src_folder_is_searched(tmp_path: Path) -> None:
    files = {"src/net/__init__.py": "", "src/net/model.py": "from net.layers import make\n", "src/net/layers.py": MAKE}
    folder = job(tmp_path / "job", files, "net.model:make")
    validate(str(folder))
    assert made_by_a_rank(unpacked(folder, tmp_path / "package"), "net.model:make", tmp_path) == "made"


def test_a_linked_package_is_copied(tmp_path: Path) -> None:
    folder = job(tmp_path / "job", {"model.py": "from lib.net import make\n"})
    (tmp_path / "shared_lib").mkdir()
    (tmp_path / "shared_lib" / "net.py").write_text(MAKE)
    (folder / "lib").symlink_to("../shared_lib")
    assert made_by_python(folder, "model:make") == "made"
    validate(str(folder))
    package = unpacked(folder, tmp_path / "elsewhere" / "package")
    (tmp_path / "shared_lib").rename(tmp_path / "gone")
    assert made_by_a_rank(package, "model:make", tmp_path) == "made"


REFUSED: dict[str, tuple[dict[str, str], str, tuple[str, ...]]] = {
    "relative import at the top": (
        {"model.py": "import os\nfrom .layers import make\n", "layers.py": MAKE},
        "model:make",
        ("model.py:2 imports from .layers", "Write `from layers import ...`."),
    ),
    "job inside its package": (
        {"__init__.py": "", "model.py": "from .layers import make\n", "layers.py": MAKE},
        "model:make",
        ("model.py:1", "Move the job file to", "job.model there."),
    ),
    "relative import above the package": (
        {"net/model.py": "from ..layers import make\n", "layers.py": MAKE},
        "net.model:make",
        ("model.py:1 imports from ..layers",),
    ),
    "helper named as one of Python's": (
        {"model.py": "from queue import make\n", "queue.py": MAKE},
        "model:make",
        ("Python's standard library; model.py:1 means queue", "Rename", "queue.py"),
    ),
    "the same inside a function": (
        {"model.py": "def make():\n    import queue\n    return queue.make()\n", "queue.py": MAKE},
        "model:make",
        ("model.py:2 means queue",),
    ),
    "module named as a package of ours": (
        {"model.py": "import torch\n" + MAKE, "torch.py": ""},
        "model:make",
        ("a package that Drivetrain uses; model.py:1 means torch", "torch.py"),
    ),
    "package named as an indirect one": (
        {"model.py": "import click\n" + MAKE, "click/__init__.py": ""},
        "model:make",
        ("a package that Drivetrain uses", "job/click."),
    ),
    "notebook instead of a module": (
        {"model.ipynb": "{}"},
        "model:make",
        ("jupyter nbconvert --to script model.ipynb",),
    ),
    "notebook that is named": ({"model.ipynb": "{}"}, "model.ipynb:make", ("nbconvert --to script model.ipynb",)),
    "notebook that is imported": (
        {"model.py": "from helper import make\n", "helper.ipynb": "{}"},
        "model:make",
        ("helper is not installed (model.py:1 imports it)", "nbconvert --to script helper.ipynb"),
    ),
    "module that git ignores": (
        {"model.py": "from helper import make\n", "helper.py": MAKE, ".gitignore": "helper.py\n"},
        "model:make",
        ("leaves out helper.py: git ignores it. Remove it from .gitignore.",),
    ),
    "package in a folder that git ignores": (
        {"net/model.py": MAKE, ".gitignore": "/net/\n"},
        "net.model:make",
        ("leaves out net: git ignores it.",),
    ),
    "module named like a secret": (
        {"model.py": "import credentials\n" + MAKE, "credentials.py": ""},
        "model:make",
        ("its name is that of a secret. Rename it.",),
    ),
    "part of a package that is missing": (
        {"net/__init__.py": "", "net/model.py": "import net.layers\n" + MAKE},
        "net.model:make",
        ("model.py:1 imports net.layers", "Module net.layers does not exist."),
    ),
    "import that is not installed": (
        {"model.py": "import os\n\nimport not_there.inner\n" + MAKE},
        "model:make",
        ("not_there is not installed (model.py:3 imports it)", "Install not_there."),
    ),
    "syntax error in an imported file": (
        {"model.py": "import helper\n" + MAKE, "helper.py": "x = 1\ndef (\n"},
        "model:make",
        ("helper.py:2: invalid syntax",),
    ),
    "no text": ({"model.py": "x = '\0'\n" + MAKE}, "model:make", ("model.py:1: ",)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_run_is_refused(case: str, tmp_path: Path) -> None:
    files, factory, said = REFUSED[case]
    with pytest.raises(InputError) as caught:
        validate(str(job(tmp_path / "job", files, factory)))
    assert caught.value.where == "model.factory"
    for part in said:
        assert part in str(caught.value)


def test_a_module_behind_a_link_out_of_the_project(tmp_path: Path) -> None:
    folder = job(tmp_path / "project" / "job", {"model.py": "from lib.net import make\n"})
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "net.py").write_text(MAKE)
    (folder / "lib").symlink_to(tmp_path / "lib")
    with pytest.raises(InputError, match=r"leaves out lib: it is a link out of the project\. Copy it"):
        validate(str(folder))


def test_what_is_left_out(tmp_path: Path) -> None:
    files = [".env", ".venv/x.py", "env/pyvenv.cfg", "env/x.py", "__pycache__/a.pyc", ".idea/a.py", "sub/skipped.bin",
             "kept.bin", "sub/deep.txt", "out/result", "tables/train.csv", "tables/make.py", "toy-report.html",
             "other.yaml", "settings.yaml"]  # fmt: skip
    folder = job(tmp_path / "job", {"model.py": MAKE, **dict.fromkeys(files, "x")})
    (folder / "other.yaml").write_text(yaml.safe_dump(JOB))
    (folder / ".gitignore").write_text("*.bin\n!/kept.bin\n")
    (folder / "sub" / ".gitignore").write_text("deep.*\n")
    (folder / "nowhere").symlink_to("nothing")
    (folder / "sub" / "circle").symlink_to("..")
    (folder / "sub" / "self").symlink_to("self")
    os.mkfifo(folder / "pipe")
    code = read_code(folder, ["data.csv", "tables", "out"])
    assert [*code.contents] == [
        ".gitignore",
        "kept.bin",
        "model.py",
        "settings.yaml",
        "sub/.gitignore",
        "tables/make.py",
    ]
    assert dict(code.left_out) == {
        ".env": Why.SECRET,
        ".idea": Why.HIDDEN,
        ".venv": Why.HIDDEN,
        "data.csv": Why.DATA,
        "nowhere": Why.BROKEN,
        "out": Why.DATA,
        "sub/circle": Why.BROKEN,
        "sub/deep.txt": Why.IGNORED,
        "sub/self": Why.BROKEN,
        "sub/skipped.bin": Why.IGNORED,
        "tables": Why.DATA,
    }
    assert "; left out: 2 ignored by git (sub/deep.txt, sub/skipped.bin), 2 hidden (" in code.summary()


def test_rules_of_the_repository_count_but_not_those_that_ignore_the_job(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".gitignore").write_text("*.bin\n")
    folder = job(tmp_path / "jobs" / "one", {"model.py": MAKE, "big.bin": "x"})
    assert read_code(folder).left_out == {"big.bin": Why.IGNORED}
    assert "big.bin" in read_code(folder, in_project=False).contents
    (tmp_path / ".gitignore").write_text("*.bin\njobs/\n")
    assert "big.bin" in read_code(folder).contents


def test_the_data_of_a_job_travels_with_it_even_if_git_ignores_it(tmp_path: Path) -> None:
    folder = job(tmp_path / "job", {"model.py": MAKE, ".gitignore": "*.csv\n"})
    package = unpacked(folder, tmp_path / "package")
    assert load_job(str(package / "job.yaml"), unpacked=True).code_version == load_job(str(folder)).code_version
    assert (package / "data.csv").read_text() == "x\n1\n"


def test_data_behind_a_link_out_of_the_project_is_not_sent(tmp_path: Path) -> None:
    folder = job(tmp_path / "project" / "job", {"model.py": MAKE})
    (tmp_path / "private.csv").write_text("x\n1\n")
    (folder / "data.csv").unlink()
    (folder / "data.csv").symlink_to(tmp_path / "private.csv")
    validate(str(folder))
    with pytest.raises(InputError, match="an absolute path or URL that the cluster can read"):
        unpacked(folder, tmp_path / "package")


def test_the_home_is_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = job(tmp_path / "job", {"model.py": MAKE, "home/drivetrain.db": "x"})
    monkeypatch.setenv("DRIVETRAIN_HOME", str(folder / "home"))
    assert [*load_job(str(folder)).code.contents] == ["model.py"]


def test_too_much_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = job(tmp_path / "job", {"model.py": MAKE, "weights.pt": "x" * 3000, "images/1": "", "images/2": ""})
    with pytest.raises(InputError) as caught:
        read_code(folder, max_bytes=2000)
    assert "weights.pt: 2.93 KiB" in caught.value.given
    assert ".gitignore" in caught.value.fix
    read_code(folder, ["weights.pt"], max_bytes=2000)
    monkeypatch.setattr(code_files, "MAX_FILES", 3)
    with pytest.raises(InputError, match="more than 3 files of code, most of them in images"):
        read_code(folder)


def test_an_invalid_pattern_names_its_file(tmp_path: Path) -> None:
    folder = job(tmp_path / "job", {"model.py": MAKE, ".gitignore": "!\n"})
    with pytest.raises(InputError, match=r"\.gitignore"):
        read_code(folder)


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    """Root reads every file unless it gives up its capabilities."""
    folder = job(tmp_path / "job", {"model.py": MAKE})
    (folder / "model.py").chmod(0)
    without = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    script = (
        "import pathlib, sys; from drivetrain.job.code_files import read_code; read_code(pathlib.Path(sys.argv[1]))"
    )
    command = [*without, sys.executable, "-c", script, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert re.search(r"InputError: .*model\.py.*Make it readable", done.stderr), done.stderr


names = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20)
plain = names.filter(lambda name: not name.startswith(".") and len(name.encode()) < 200)


@given(st.dictionaries(plain.map(lambda name: f"f{name}"), st.binary(max_size=50), min_size=1, max_size=5))
def test_a_snapshot_holds_what_was_read(tmp_path_factory: pytest.TempPathFactory, contents: dict[str, bytes]) -> None:
    """Whatever the names and contents: read, packed, unpacked, stored and read again are the same code."""
    root = tmp_path_factory.mktemp("any")
    (root / "job").mkdir()
    for name, content in contents.items():
        (root / "job" / name).write_bytes(content)
    code = read_code(root / "job", in_project=False)
    bundle.unpack(bundle.pack(root / "job")[1], root / "package")
    assert read_code(root / "package", in_project=False).contents == code.contents
    store_code(code, RunFolder(root / "run"))
    again = stored_code(RunFolder(root / "run"))
    assert (again.contents, again.version) == (code.contents, code.version)


def test_a_name_need_not_be_utf_8(tmp_path: Path) -> None:
    folder = job(tmp_path / "job", {"model.py": MAKE, os.fsdecode(b"caf\xe9.txt"): "x"})
    code = load_job(str(folder)).code
    assert read_code(unpacked(folder, tmp_path / "package"), ["data.csv"], in_project=False).version == code.version
    store_code(code, RunFolder(tmp_path / "run"))
    assert stored_code(RunFolder(tmp_path / "run")).version == code.version


@given(st.dictionaries(plain, st.binary(max_size=9), min_size=1, max_size=4), st.data())
def test_every_change_of_a_file_changes_the_version(contents: dict[str, bytes], data: st.DataObject) -> None:
    def version(files: dict[str, bytes], executable: frozenset[str] = frozenset()) -> str:
        return Code(Path("/job"), dict(sorted(files.items())), executable).version

    name = data.draw(st.sampled_from(sorted(contents)))
    before = version(contents)
    assert version(dict(reversed(contents.items()))) == before
    assert version({**contents, name: contents[name] + b"."}) != before
    assert version({**contents, f"{name}.": b""}) != before
    assert version({other: content for other, content in contents.items() if other != name}) != before
    assert version(contents, frozenset({name})) != before


def test_a_changed_snapshot_starts_no_run(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    store_code(Code(tmp_path, {"model.py": b"x = 1\n"}), run)
    (run.code / "made-by-the-run.txt").touch()
    assert [*stored_code(run).contents] == ["model.py"]
    (run.code / "model.py").write_text("x = 2\n")
    with pytest.raises(CorruptFileError, match="its files have the version"):
        stored_code(run)
    (run.code / "model.py").unlink()
    with pytest.raises(CorruptFileError, match=r"model\.py"):
        stored_code(run)


def test_the_version_of_the_data_covers_the_same_files(tmp_path: Path) -> None:
    """Prepared data depends on every file of the code that a transform may open, and on no file that a run writes."""
    run = RunFolder(tmp_path)
    store_code(Code(tmp_path, {"model.py": b"", "sub/words.txt": b""}), run)
    (run.code / "made-by-the-run.py").touch()
    assert files_of(run.code) == [run.code / "model.py", run.code / "sub/words.txt"]
    with temporary_snapshot(stored_code(run), Home(tmp_path)) as code:
        assert files_of(code) == [code / "model.py", code / "sub/words.txt"]


def test_a_temporary_snapshot_is_removed(tmp_path: Path) -> None:
    with temporary_snapshot(Code(tmp_path, {"tool.sh": b""}, frozenset({"tool.sh"})), Home(tmp_path)) as code:
        assert os.access(code / "tool.sh", os.X_OK)
    assert [*tmp_path.iterdir()] == []


def test_two_jobs_in_one_process(tmp_path: Path) -> None:
    """Modules of the same names are those of the job that was entered last."""
    for name in ("one", "two"):
        job(
            tmp_path / name,
            {"model.py": "from parts.net import make\n", "parts/net.py": f"def make(): return {name!r}"},
        )
    program = (
        "from drivetrain_pipelines.user_code import load_function\n"
        "calls = [load_function('model:make', f'{root}/{job}', 'model.factory') for job in ('one', 'two', 'one')]\n"
        "print([call() for call in calls])"
    )
    assert run_python(f"root = {str(tmp_path)!r}\n{program}", tmp_path) == "['one', 'two', 'one']"


def test_modules_of_the_starting_folder_are_not_found(tmp_path: Path) -> None:
    """They would be missing on another machine."""
    folder = job(tmp_path / "job", {"model.py": "from helper import make\n"})
    (tmp_path / "helper.py").write_text(MAKE)
    assert "No module named 'helper'" in made_by_a_rank(folder, "model:make", tmp_path)
    program = f"from drivetrain.api.runs import validate; validate({str(folder)!r})"
    assert "helper is not installed" in run_python(program, tmp_path)


def test_a_client_leaves_other_modules_to_the_cluster(tmp_path: Path) -> None:
    """What it does know, it reports before anything is sent."""
    folder = job(tmp_path / "job", {"model.py": "import not_there\nfrom helper import make\n", "helper.py": MAKE})

    def check() -> None:
        _, document = read_document(folder / "job.yaml")
        check_code_to_send(document, read_code(folder, names_of_data(document)))

    check()
    (folder / ".gitignore").write_text("helper.py\n")
    with pytest.raises(InputError, match=r"leaves out helper\.py: git ignores it"):
        check()
    (folder / "job.yaml").write_text("keys: of a later version\n")
    check()

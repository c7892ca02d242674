"""Inputs of `drivetrain predict`: files, folders and globs become files, and a text stays a text."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from drivetrain.api.given_inputs import expand
from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.spec import AudioSpec, DataSpec, ImageSpec
from hypothesis import given
from hypothesis import strategies as st

TEXT = DataSpec(source="x")
IMAGES = DataSpec(source="x", image=ImageSpec(height=8, width=8))
SOUND = DataSpec(source="x", audio=AudioSpec(seconds=1))
TABLE = DataSpec(source="x", columns=["x"])
READER = DataSpec(source="x", reader="a:b", columns=["x"])
PARTS = st.sampled_from(["a", "B", ".hidden", "ü", "with space", "[x]"])
NAMES = st.sampled_from(["1.png", "2.PNG", "3.csv", "4.txt", "5.jsonl.gz", "6.wav", "7.bin", ".8.png", "README"])


@given(tree=st.sets(st.tuples(st.lists(PARTS, max_size=2), NAMES).map(lambda found: "/".join([*found[0], found[1]]))))
def test_a_folder_stands_for_all_files_of_the_format_below_it(tree: set[str]) -> None:
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path) / "inputs"
        for name in tree:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        folder.mkdir(exist_ok=True)
        seen = [name for name in sorted(tree) if not any(part.startswith(".") for part in name.split("/"))]
        for spec, endings in (
            (IMAGES, (".png",)),
            (SOUND, (".wav",)),
            (TABLE, (".csv", ".jsonl.gz")),
            (TEXT, (".csv", ".jsonl.gz", ".txt")),
            (READER, ("",)),
        ):
            expected = sorted(folder / name for name in seen if name.lower().endswith(endings))
            if expected:
                assert expand([str(folder)], spec) == [*map(str, expected)]
            else:
                with pytest.raises(InputError, match="INPUT"):
                    expand([str(folder)], spec)


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_a_text_is_a_text(text: str) -> None:
    """Whatever characters it has: also those of a glob, a NUL, or none."""
    special = (
        text == "-" or text.lower().endswith((".txt", ".md", ".csv", ".png")) or Path(text.strip("\0") or "x").exists()
    )
    if not special and "\0" not in text:
        assert expand([text], TEXT) == [text]
    assert expand([f"{text} and more words " * 20], TEXT) == [f"{text} and more words " * 20]


def test_globs_and_several_inputs_keep_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b.png", "a.png", "c.txt", "inside/d.png"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    assert expand(["*.png", "inside"], IMAGES) == ["a.png", "b.png", "inside/d.png"]
    assert expand(["**/*.png"], IMAGES) == ["a.png", "b.png", "inside/d.png"]
    assert expand(["c.txt", "a text", "a.png"], TEXT) == ["c.txt", "a text", "a.png"], "a file is taken as it is"
    assert expand(["What?", "2 * 3", "e.g. [this]"], TEXT) == ["What?", "2 * 3", "e.g. [this]"]
    assert expand(["a.png", "."], None) == ["a.png", "a.png", "b.png", "c.txt", "inside/d.png"]


@pytest.mark.parametrize(
    ("inputs", "spec", "message"),
    [
        ([], TEXT, r"INPUT: got nothing; allowed: a text, an existing file"),
        (["-"], TEXT, r"got '-'; allowed: a text, an existing file, .* Standard input is not read"),
        (["-"], IMAGES, r"got '-'; allowed: an existing file"),
        (
            ["missing.png"],
            IMAGES,
            r"got 'missing.png', which does not exist; allowed: an existing file, a folder, or a glob",
        ),
        (["reviews.txt"], TEXT, r"got 'reviews.txt', which does not exist.* can be given in a file"),
        (["*.png"], IMAGES, r"got '\*\.png', which does not exist"),
        (["empty"], IMAGES, r"got the empty folder 'empty'; allowed: a folder with files whose names end with \.jpg"),
        (["other"], IMAGES, r"got the folder 'other' with 1 other files; allowed: a folder with files"),
        (["other"], None, r"got the folder 'other' with 1 other files"),
    ],
)
def test_what_cannot_be_an_input_is_one_sentence(
    inputs: list[str], spec: DataSpec | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("other").mkdir()
    Path("other/weights.bin").touch()
    with pytest.raises(InputError, match=message) as error:
        expand(inputs, spec)
    assert "\n" not in str(error.value)

"""Checks of a job's data section before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.raw.checks import check_data, check_location
from drivetrain_pipelines.raw.tokenizer_config import with_special_tokens
from drivetrain_pipelines.spec import AudioSpec, DataSpec, ImageSpec, MixtureSpec, StorageSpec, TokenizerSpec

IMAGE = ImageSpec(height=4, width=4)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """Create a job's folder with data."""
    folder = tmp_path / "job"
    (folder / "photos" / "cat").mkdir(parents=True)
    (folder / "photos" / "cat" / "1.png").touch()
    (folder / "empty").mkdir()
    for name in ("text.txt", "held_out.txt", "tokenizer.json", "names.csv"):
        (folder / name).touch()
    return folder


def test_every_path_becomes_absolute(job: Path) -> None:
    spec = DataSpec(
        source="text.txt",
        eval_source="./held_out.txt",
        files={"names": "names.csv"},
        tokenizer=TokenizerSpec(vocab_size=300, file="tokenizer.json"),
        location="../prepared",
    )
    checked = check_data(spec, job)
    assert checked.source == str(job / "text.txt")
    assert checked.eval_source == str(job / "held_out.txt")
    assert checked.files == {"names": str(job / "names.csv")}
    assert checked.tokenizer == TokenizerSpec(vocab_size=300, file=str(job / "tokenizer.json"))
    assert checked.location == str(job.parent / "prepared")
    assert check_data(checked, Path("/")) == checked


def test_each_source_of_a_mixture(job: Path) -> None:
    parts = [MixtureSpec(source="text.txt", weight=3.0), MixtureSpec(source="held_out.txt")]
    checked = check_data(DataSpec(source=parts), job)
    assert [(part.source, part.weight) for part in checked.mixture] == [
        (str(job / "text.txt"), 3.0),
        (str(job / "held_out.txt"), 1.0),
    ]
    parts[1] = MixtureSpec(source="missing.txt")
    with pytest.raises(InputError, match=r"^data\.source\.1\.source: .*missing\.txt"):
        check_data(DataSpec(source=parts), job)


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"source": "missing.txt"}, "data.source"),
        ({"source": "empty"}, "data.source"),
        ({"source": "photos", "format": "audio"}, "data.source"),
        ({"source": []}, "data.source"),
        ({"source": "text.txt", "eval_source": "missing.txt"}, "data.eval_source"),
        ({"source": "text.txt", "files": {"names": "missing.csv"}}, "data.files.names"),
        ({"source": "text.txt", "tokenizer": TokenizerSpec(file="missing.json")}, "data.tokenizer.file"),
        ({"source": "text.txt", "location": "s33://bucket"}, "data.location"),
        ({"source": "photos", "image": IMAGE, "audio": AudioSpec(seconds=1.0)}, "data.audio"),
        ({"source": "text.txt", "reader": "read:records", "format": "csv"}, "data.format"),
        ({"source": "photos", "image": IMAGE.model_copy(update={"decode": False}), "format": "audio"}, "data.image"),
    ],
)
def test_errors_name_the_key(job: Path, fields: dict[str, Any], where: str) -> None:
    with pytest.raises(InputError) as caught:
        check_data(DataSpec(**fields), job)
    assert caught.value.where == where


def test_a_reader_of_the_job_takes_files_of_any_name(job: Path) -> None:
    (job / "scans").mkdir()
    (job / "scans" / "1.dcm").touch()
    with pytest.raises(InputError, match=r"data\.source"):
        check_data(DataSpec(source="scans"), job)
    assert check_data(DataSpec(source="scans", reader="read:records"), job).source == str(job / "scans")


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("prepared", "JOB/prepared"),
        ("/data/../prepared/", "/prepared"),
        ("file:///data/prepared", "/data/prepared"),
        ("~/prepared", "HOME/prepared"),
        ("memory://bucket/prepared/", "memory://bucket/prepared"),
    ],
)
def test_locations(job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str, expected: str) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    found = check_location("data.location", location, StorageSpec(), job)
    assert found == expected.replace("JOB", str(job)).replace("HOME", str(tmp_path))


def test_an_unknown_kind_of_url(job: Path) -> None:
    with pytest.raises(InputError, match="a folder or a URL of fsspec") as caught:
        check_location("checkpoint.location", "s33://bucket", StorageSpec(), job)
    assert (caught.value.where, caught.value.given) == ("checkpoint.location", "'s33://bucket'")


@pytest.mark.parametrize("token", ["<stop>", {"content": "<stop>", "special": True}])
def test_a_published_tokenizer_names_its_special_tokens(tmp_path: Path, token: object) -> None:
    config = {"eos_token": token, "pad_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    file = str(tmp_path / "tokenizer.json")
    assert with_special_tokens(TokenizerSpec(file=file)) == TokenizerSpec(file=file, end_token="<stop>")
    assert with_special_tokens(TokenizerSpec(file=file, end_token="x")).end_token == "x"
    (tmp_path / "tokenizer_config.json").write_text("[")
    with pytest.raises(InputError, match="a JSON object"):
        with_special_tokens(TokenizerSpec(file=file))

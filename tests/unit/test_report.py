"""The HTML report of a run."""

from __future__ import annotations

import base64
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from drivetrain.errors import NotFoundError
from drivetrain.home import Home
from drivetrain.reporting.report import write_report
from drivetrain.runs.store import RunStore
from drivetrain_workers.protocol.reasons import Reason

from tests.unit.runs import home_in, job, make_run, train

PNG = b"\x89PNG a picture"
ATTACK = "<script>alert('x')</script>"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    return home_in(tmp_path, monkeypatch)


def page_of(home: Home, **facts: Any) -> str:
    make_run(home, "toy-1")
    train(home, "toy-1", **facts)
    return write_report("toy").read_text()


def cells(page: str) -> dict[str, str]:
    """Return the rows of all tables, by their first cell."""
    rows = re.findall(r"<tr><td[^>]*>(.*?)</td>\s*<td[^>]*>(.*?)</td>", page, re.DOTALL)
    return {unescape(title): unescape(value) for title, value in reversed(rows)}


def test_a_page_says_what_came_of_a_run(home: Home) -> None:
    plan = {"zero_stage": 1, "micro_batch_size": 4, "peak_bytes": 2e9, "step_s": 0.5}
    assessment = {"scores": {"accuracy": 0.9}, "slices": []}
    page = page_of(
        home,
        parameters=1234567,
        peak_bytes=1_500_000_000,
        step_s=0.25,
        tokens_per_s=2048.0,
        metrics={"accuracy": 0.75},
        plan=plan,
        assessment=assessment,
        mlflow_run_id="abc",
        sample="The cat sat.",
    )
    found = cells(page)
    assert found["user"] == "ann"
    assert found["state"] == "completed"
    assert found["steps"] == "4"
    assert (found["train loss"], found["eval loss"], found["accuracy"]) == ("0.25", "0.5", "0.75")
    assert found["parameters"] == "1,234,567"
    assert found["throughput"] == "2,048 tokens/s"
    assert found["memory"] == "at most 1.50 GB per rank"
    assert found["assessed"] == "accuracy 0.9"
    expected = "zero 1, micro-batches of 4; 2.00 GB predicted, 1.50 GB used; 0.5 s per step predicted, 0.25 s measured"
    assert found["plan"] == expected
    assert "goodput" in found["time"]
    assert found["training.steps"] == "4"
    assert found["model.factory"] == "model:make"
    assert "<pre>The cat sat.</pre>" in page
    for phase in ("preparing", "ready", "placing", "starting", "training", "ended"):
        assert f'<td class="phase">{phase}</td><td class="faint">to {phase}</td>' in page


def test_a_page_needs_nothing_else(home: Home) -> None:
    """Every image is embedded, with the content of its file."""
    folder = make_run(home, "toy-1")
    train(home, "toy-1")
    folder.assessment.mkdir()
    (folder.assessment / "reliability.png").write_bytes(PNG)
    for step in range(1, 6):
        target = folder.predictions / f"step-{step}"
        target.mkdir(parents=True)
        (target / f"digit-{step}.png").write_bytes(PNG + bytes([step]))
        (target / "values.json").write_text("{}")
    (folder.predictions / "photo.jpg").write_bytes(b"jpeg")
    page = write_report("toy-1").read_text()
    sources = re.findall(r'<img src="([^"]*)" alt="([^"]*)"', page)
    assert [title for _, title in sources] == [
        "Loss",
        "Confidence and accuracy",
        "Time",
        "digit-3",
        "digit-4",
        "digit-5",
    ]
    assert all(source.startswith("data:image/png;base64,") for source, _ in sources)
    content = [base64.b64decode(source.partition(",")[2]) for source, _ in sources]
    assert content[0] == (folder.path / "loss.png").read_bytes()
    assert content[1] == PNG
    assert content[5] == PNG + b"\x05"
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)


def test_a_jpeg_is_one(home: Home) -> None:
    folder = make_run(home, "toy-1")
    folder.predictions.mkdir()
    (folder.predictions / "photo.jpg").write_bytes(b"jpeg")
    assert '<img src="data:image/jpeg;base64,' in write_report("toy-1").read_text()


def test_words_of_others_are_no_html(home: Home) -> None:
    spec = job(model={"args": {"name": ATTACK}})
    folder = make_run(home, "toy-1", spec, user=ATTACK)
    train(home, "toy-1", reason=Reason.USER_CODE, sample=ATTACK, detail=ATTACK, metrics={ATTACK: 1.0}, problem=ATTACK)
    folder.predictions.mkdir()
    (folder.predictions / "<script>.png").write_bytes(PNG)
    page = write_report("toy-1").read_text()
    assert "<script>" not in page
    found = cells(page)
    assert found["user"] == found["reason"] == found["note"] == found["model.args.name"] == ATTACK
    assert found[ATTACK] == "1"


def test_a_run_that_has_not_begun_has_a_page(home: Home) -> None:
    make_run(home, "toy-1")
    page = write_report("toy-1").read_text()
    found = cells(page)
    assert (found["state"], found["steps"], found["restarts"]) == ("queued", "0", "0")
    assert not {"train loss", "parameters", "plan", "memory"} & found.keys()
    assert "Samples" not in page


def test_a_page_is_written_again(home: Home, tmp_path: Path) -> None:
    make_run(home, "toy-1")
    assert write_report("toy-1") == home.run("toy-1").path / "report.html"
    RunStore(home.database_url).update_facts("toy-1", eval_loss=0.125)
    assert write_report("toy-1", tmp_path / "page.html") == tmp_path / "page.html"
    assert cells((tmp_path / "page.html").read_text())["eval loss"] == "0.125"


def test_a_run_that_is_not_there(home: Home) -> None:
    make_run(home, "toy-1")
    with pytest.raises(NotFoundError, match="toy-1"):
        write_report("other")

"""The reference pages are what the code says; the README is short and shows what the site shows."""

from __future__ import annotations

import re
import runpy
from typing import Any

import pytest
import yaml
from drivetrain.job.spec import JobSpec, ResourcesSpec, SchedulingSpec
from drivetrain.scheduling.rules import Rules

from tests.docs_pages import DOCS, GENERATED, README, ROOT, blocks, example

GENERATE = runpy.run_path(str(DOCS / "generate.py"))


def test_generated_pages_are_listed() -> None:
    assert sorted(GENERATE["pages"]()) == GENERATED


@pytest.mark.parametrize("name", GENERATED)
def test_a_generated_page_is_up_to_date(name: str) -> None:
    assert (DOCS / name).read_text() == GENERATE["pages"]()[name], "run `python docs/generate.py`"


def test_every_key_has_a_row() -> None:
    page = (DOCS / "job-file.md").read_text()
    for path, model in GENERATE["sections"](JobSpec, ""):
        section = page.split(f"\n## {f'`{path}`' if path else 'Top level'}\n")[1].split("\n## ")[0]
        for key in model.model_fields:
            assert f"| `{key}` |" in section, f"{path}.{key}"


def test_every_page_is_in_the_navigation() -> None:
    def files(entry: Any) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        return [file for part in (entry.values() if isinstance(entry, dict) else entry) for file in files(part)]

    settings = (ROOT / "mkdocs.yml").read_text()
    assert sorted(files(yaml.safe_load(settings)["nav"])) == sorted(page.name for page in DOCS.glob("*.md"))


def test_the_site_loads_nothing_from_elsewhere() -> None:
    """Material loads Mermaid from a CDN if a page has a diagram, and fonts unless they are disabled."""
    assert yaml.safe_load((ROOT / "mkdocs.yml").read_text())["theme"]["font"] is False
    assert not [page.name for page in DOCS.glob("*.md") for block in blocks(page) if block.language == "mermaid"]


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) < 150


def test_the_readme_shows_the_diagram_of_the_site() -> None:
    """docs/system.svg is made from docs/system.mmd; see CONTRIBUTING.md."""
    (diagram,) = (block.text for block in blocks(README) if block.language == "mermaid")
    assert diagram == (DOCS / "system.mmd").read_text()


def test_the_readme_shows_the_output_of_its_example() -> None:
    """`python docs/terminal.py docs/terminal.svg drivetrain run job.yaml` has drawn it."""
    assert "(docs/terminal.svg)" in README.read_text()
    picture = (DOCS / "terminal.svg").read_text()
    assert re.search(r"completed&#160;&#160;my-texts-\w{6}", picture)
    assert "http" not in picture.replace("http://www.w3.org/2000/svg", "").replace("https://www.textualize.io", "")


def test_the_example_of_the_readme_is_that_of_the_site() -> None:
    short, long = example(README, "Train on your own data"), example(DOCS / "train-on-your-data.md", "Text")
    assert short["model.py"] == long["model.py"]
    assert len(short["job.yaml"].splitlines()) <= 16
    assert {**yaml.safe_load(short["job.yaml"]), "resources": None} == {
        **yaml.safe_load(long["job.yaml"]),
        "resources": None,
    }


def test_the_cluster_page_shows_valid_settings() -> None:
    job, rules = (block.text for block in blocks(DOCS / "cluster.md") if block.language == "yaml")
    shown = yaml.safe_load(job)
    ResourcesSpec.model_validate(shown["resources"])
    assert SchedulingSpec.model_validate(shown["scheduling"]).expected_hours == 3
    assert set(yaml.safe_load(rules)) == set(Rules.model_fields) - {"backfill_depth"}
    assert Rules.model_validate(yaml.safe_load(rules)).users["ann"].weight == 2

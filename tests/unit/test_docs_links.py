"""Every relative link, picture, anchor and path in the documentation leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs_pages import DOCS, PAGES, ROOT

LINKED = [
    *PAGES,
    ROOT / "CHANGELOG.md",
    ROOT / "infra" / "README.md",
    *sorted((ROOT / "workers" / "drivetrain_workers" / "recipes").glob("*/README.md")),
]
_FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r'\]\(([^)\s]+)\)|(?:src|href)="([^"]+)"')
_PATH = re.compile(r"`((?:orchestrator|workers|pipelines|infra|tests|docs)/[\w./*-]+)`")


def prose(page: Path) -> str:
    """The text of a page without its code blocks."""
    return _FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """What a link to a heading of a page may say after the ``#``."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", LINKED, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in [first or second for first, second in _LINK.findall(prose(page))]:
        if re.match(r"[a-z]+:", target):
            continue  # another site
        file, _, anchor = target.partition("#")
        found = page.parent / file if file else page
        assert found.exists(), target
        if anchor:
            assert anchor in anchors(found), target


@pytest.mark.parametrize("page", LINKED, ids=name)
def test_named_paths_exist(page: Path) -> None:
    for path in _PATH.findall(prose(page)):
        if "NAME" not in path:
            assert any(True for _ in ROOT.glob(path.rstrip("/"))), path


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=name)
def test_links_of_the_site_stay_inside_it(page: Path) -> None:
    """The site has only what is in docs/."""
    for target in [first or second for first, second in _LINK.findall(prose(page))]:
        assert not target.startswith(("../", "/")), target


@pytest.mark.parametrize("picture", [p for p in DOCS.rglob("*") if p.suffix in (".png", ".jpg", ".svg")], ids=name)
def test_every_picture_is_shown(picture: Path) -> None:
    shown = f"({picture.relative_to(DOCS)})"
    assert any(shown in page.read_text() for page in DOCS.glob("*.md")), shown


def test_names_in_the_steps_to_extend_exist() -> None:
    sources = [ROOT / folder for folder in ("orchestrator", "workers", "pipelines", "tests")]
    code = "\n".join(path.read_text() for folder in sources for path in folder.rglob("*.py"))
    named = re.findall(r"`(_?[A-Za-z]\w*)(?:\([\w, ]*\))?`", prose(DOCS / "extending.md"))
    assert [word for word in named if "NAME" not in word and not re.search(rf"\b{word}\b", code)] == []

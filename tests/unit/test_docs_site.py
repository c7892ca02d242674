"""The site builds with strict links, and its pages load nothing from other servers."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.docs_pages import DOCS, ROOT

_LOADED = re.compile(r'<(?:script|img|iframe|source)\b[^>]*\bsrc="(https?:[^"]+)"|<link\b[^>]*\bhref="(https?:[^"]+)"')


def test_the_site_builds_and_is_self_contained(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = {str(page.relative_to(tmp_path)): page.read_text() for page in tmp_path.rglob("*.html")}
    assert {f"{page.stem}/index.html" for page in DOCS.glob("*.md") if page.stem != "index"} <= pages.keys()
    assert {name: _LOADED.findall(text) for name, text in pages.items() if _LOADED.search(text)} == {}
    assert "Raises" in pages["api/index.html"], "docstrings are rendered"

"""The language of the repository: plain technical English, and docstrings that start with a verb."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contracts.test_tree import FILES, REPOSITORY, relative

# Regular expressions of idioms, matched as whole words in any case, and the usual replacement.
IDIOMS = {
    r"told": "reported, passed, notified",
    r"tells": "reports, states, shows",
    r"goes on": "continues, resumes",
    r"go on with": "continue, resume",
    r"going on with": "continuing, resuming",
    r"gone on": "continued",
    r"went on": "continued",
    r"pass(es|ed|ing)? over": "skip",
    r"reckon\w*": "estimate, calculate",
    r"foret(old|ells?)": "predict",
    r"(comes?|came) along": "is bundled, is included",
    r"mend(s|ed|ing)?": "fix",
    r"troubles?": "error, problem",
    r"anew": "again, from the start",
    r"nobody": "no user, no process",
    r"whoever": "anyone who, the user who",
    r"besides?": "next to, in addition to, other than",
    r"of (its|their|his|her|your|our|my) own": "its own, separate",
    r"strangers?": "padding row",
    r"for ever": "indefinitely",
    r"(?<!\.)floors?": "layer",  # numpy.floor is a function
    r"without a word": "prints nothing, without a message",
    r"amid|amidst|amongst": "among, between",
    r"whence": "from which",
    r"hence": "therefore",
    r"thereof|whereof|therein": "of it, of which, in it",
    r"ere": "before",
    r"forthwith": "immediately",
    r"giv\w* (its|their|the) places? back": "release the allocation",
    r"gives? way": "yield",
    r"(has |have )?not got": "does not have",
    r"let\w* go of": "release",
    r"lets? go": "release",
    r"once more": "again",
    r"bring\w* along": "include",
    r"what came of": "the result of",
    r"comes? of it": "results from it",
    r"applicants?": "scheduler handle, request",
    r"\w*blames?": "report a node failure, attribute to",
    r"look\w* after": "manage",
    r"by and by": "gradually",
    r"ought": "should",
    r"shall": "must, will",
    r"na?ught": "nothing, zero",
    r"oneself": "itself, yourself",
    r"for good": "permanently",
    r"for nothing": "without need",
    r"in vain": "without success",
    r"sooner or later": "eventually",
    r"unbeknown": "without notice",
    r"to and fro": "in both directions",
    r"no more than": "at most",
    r"at rest": "idle",
    r"worth another try": "can be retried",
    r"who waits": "queued runs",
    r"come true": "happen, are correct",
}
_LEGAL_TEXTS = ("LICENSE",)  # quoted word for word
_IDIOM = re.compile("|".join(rf"\b(?:{idiom})\b" for idiom in IDIOMS), re.IGNORECASE)
_NOT_IMPERATIVE = re.compile(
    r"(The|An?|What|Where|Who|Whose|How|Whether|When|Which|All|Each|Every|One|It|This|That|If|In|Of|For|At|Is|Are)\b"
)


def text_files() -> Iterator[tuple[str, str]]:
    """Yield the name and the content of every tracked text file, except this one and the text of the license."""
    names = subprocess.check_output(["git", "ls-files", "-z"], cwd=REPOSITORY, text=True).split("\0")
    for name in filter(None, names):
        path = REPOSITORY / name
        if path in (Path(__file__), REPOSITORY / "LICENSE") or not path.is_file():
            continue
        try:
            yield name, path.read_text("utf-8")
        except UnicodeDecodeError:
            continue  # an image or another binary file


def replacement(idiom: str) -> str:
    """Return the replacement for an idiom as it was found."""
    return next(words for pattern, words in IDIOMS.items() if re.fullmatch(pattern, idiom, re.IGNORECASE))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("What it has been told.", "told"),
        ("Its batch is passed over", "passed over"),
        ("a Troublesome word is fine, TROUBLE is not", "TROUBLE"),
        ("np.floor(x) is fine, other floors are not", "floors"),
        ("it has a folder of its own", "of its own"),
        ("bold, cold and retold", None),
    ],
)
def test_idioms_are_found(text: str, found: str | None) -> None:
    match = _IDIOM.search(text)
    assert (match and match[0]) == found
    assert found is None or replacement(found)


def test_no_file_has_an_idiom() -> None:
    found = [
        f"{name}:{number}: {match[0]!r}; write: {replacement(match[0])}"
        for name, text in text_files()
        for number, line in enumerate(text.splitlines(), start=1)
        for match in _IDIOM.finditer(line)
    ]
    assert not found, "\n".join(found)


def is_property(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any("property" in ast.unparse(decorator) for decorator in function.decorator_list)


def test_docstrings_of_functions_start_with_a_verb() -> None:
    found = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or is_property(node):
                continue
            docstring = ast.get_docstring(node)
            if docstring and _NOT_IMPERATIVE.match(docstring):
                found.append(f"{relative(path)}:{node.lineno}: {node.name}: {docstring.splitlines()[0]}")
    assert not found, "\n".join(found)

"""README and docs/ name only what exists, and everything that exists is named there.

docs/PLAN.md and LOG.md are left out: one tells what is not yet, the other what no longer is.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = {"PLAN.md", "LOG.md"}
PAGES = [
    path
    for path in [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/**/*.md"))]
    if path.name not in LEFT_OUT
]
TOP_LEVEL = {path.name for path in ROOT.iterdir() if path.is_dir()} - {"out", "weights", ".dipole", ".venv", ".git"}
FENCE = re.compile(r"^```\w*\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(params=PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def page(request: pytest.FixtureRequest) -> Path:
    found: Path = request.param
    return found


def code(page: Path) -> Iterator[str]:
    """Each inline code span, and each line of each fenced block with its continuation lines joined."""
    text = page.read_text()
    for block in FENCE.findall(text):
        yield from (line.strip() for line in block.replace("\\\n", " ").splitlines() if line.strip())
    yield from re.findall(r"`([^`\n]+)`", FENCE.sub("", text))


def words_of(line: str) -> list[str]:
    """A shell line's words without its comment, prompt sign, pipes and redirections."""
    try:
        words = shlex.split(line.removeprefix("$ "), comments=True)
    except ValueError:
        words = line.split()
    stop = next((index for index, word in enumerate(words) if word in {"|", "&&", ";", ">", "&"}), len(words))
    return words[:stop]


def test_the_reference_pages_are_what_the_code_says() -> None:
    """docs/SETTINGS.md and docs/REFERENCE.md equal what scripts/write-reference writes: all of it is named."""
    command = [sys.executable, str(ROOT / "scripts/write-reference"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_make_target_named_exists_and_is_explained(page: Path) -> None:
    """`make X` in a page is a target of the Makefile; every target has a line in `make help`."""
    makefile = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, flags=re.MULTILINE)
    explained = set(re.findall(r"^([a-z-]+):.*## ", makefile, flags=re.MULTILINE))
    assert set(phony.split()) == explained
    for line in code(page):
        if line.startswith("make "):
            assert {word for word in words_of(line)[1:] if "=" not in word} <= explained, line


def test_every_command_named_exists(page: Path, reference: ModuleType) -> None:
    """`dipole …` in a page is a command with those options, or a group of commands."""
    groups = {
        " ".join(each.path.split()[:length])
        for each in reference.commands()
        for length in range(1, len(each.path.split()))
    }
    nested = r"\$\(([^()]*)\)"
    lines = [part for line in code(page) for part in (re.sub(nested, "X", line), *re.findall(nested, line))]
    for line in lines:
        words = words_of(line)
        if (
            words
            and words[0] in {"dipole", ".venv/bin/dipole"}
            and len(words) > 1
            and "…" not in line
            and "COMMAND" not in line
        ):
            is_group = " ".join(words[1:]).removesuffix("--help").strip() in {"", *groups}
            assert is_group or reference.find_command(words[1:]), line


def test_every_route_named_exists(page: Path, reference: ModuleType) -> None:
    """A path of a service in a page, also inside a URL, is a route."""
    shapes = [re.escape(route.path) for route in reference.routes()]
    shapes = [re.sub(r"\\\{\w+\\\}", "[^/]+", re.sub(r"\\\{path\\\}", ".+", shape)) for shape in shapes]
    for line in code(page):
        for path in re.findall(r"(?:(?<=[\s\"'`(])|(?<=:\d{4})|^)(/(?:v1/[^\s\"'`?)]*|livez|readyz|metrics))", line):
            plain = re.sub(r"\$\{?\w+\}?|\{\w+\}|…", "X", path).rstrip("/.,;")
            assert any(re.fullmatch(shape, plain) for shape in shapes), f"{path} in {line!r}"


def test_every_setting_named_exists(page: Path, reference: ModuleType) -> None:
    """A DIPOLE_ variable in a page is a setting; one that ends in _ stands for all that begin so."""
    names = reference.setting_names() | reference.COMPOSE_VARIABLES.keys()
    for name in re.findall(r"\bDIPOLE_[A-Z0-9_]*", page.read_text()):
        assert name in names or (name.endswith("_") and any(each.startswith(name) for each in names)), name


def test_every_path_named_exists(page: Path) -> None:
    """A repository path in code, or its example, and the target of every relative link, is there; globs match. A folder
    `mine` is the reader's.
    """
    text = page.read_text()
    for target in re.findall(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", text):
        assert (page.parent / target).exists(), target
    for span in code(page):
        for word in span.split():
            path = word.strip("`'\",.:;()[]").removeprefix("./")
            if re.fullmatch(r"[\w.*-]+(/[\w.*-]+)*/?", path) and path.split("/")[0] in TOP_LEVEL and "/" in path:
                plain = path.rstrip("/")
                is_there = any(ROOT.glob(plain)) or any(ROOT.glob(f"{plain}.example"))
                assert is_there or "mine" in plain.split("/"), f"{path} in {span!r}"


def heading_anchors(page: Path) -> set[str]:
    """The anchors that GitHub and the docs site give a page's headings."""
    headings = re.findall(r"^#{1,4} (.+)$", FENCE.sub("", page.read_text()), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


def test_every_anchor_linked_exists(page: Path) -> None:
    """`page.md#heading` is a heading of that page, `#heading` one of this page."""
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#([^)\s]+)\)", page.read_text()):
        assert anchor in heading_anchors(page.parent / target if target else page), f"{target}#{anchor}"


def test_the_site_leads_to_every_page() -> None:
    """Each page of docs/ stands in one table of contents of the docs site, and none stands there that is missing."""
    fence = r"^:::\{toctree\}\n(.*?)^:::$"
    tables = [
        (path.parent, table)
        for path in (ROOT / "docs/index.md", ROOT / "docs/decisions.md")
        for table in re.findall(fence, path.read_text(), flags=re.MULTILINE | re.DOTALL)
    ]
    named = [line for _, table in tables for line in table.split("\n") if line and not line.startswith(":")]
    pages = {str(path.relative_to(ROOT / "docs").with_suffix("")) for path in ROOT.glob("docs/*.md")}
    assert sorted(named) == sorted([*(pages - {"index", "PLAN"}), "self", "adr/*"])


def test_every_setting_is_explained(reference: ModuleType) -> None:
    """No setting is without its sentence."""
    for owner in reference.settings_classes():
        for setting in reference.settings_of(owner).values():
            assert re.search(r"[a-z]", setting.meaning), f"{setting.variable} has no description"


def test_every_command_and_route_is_explained(reference: ModuleType) -> None:
    """Every command has a help text, every route a summary."""
    assert [each.path for each in reference.commands() if not each.summary] == []
    assert [each for each in reference.routes() if not each.summary] == []


def test_settings_are_read_through_a_settings_class(reference: ModuleType) -> None:
    """A DIPOLE_ name in the sources is a setting, so that nothing is read from the environment behind their back."""
    names = reference.setting_names()
    for folder in ("shared", "services", "trainer"):
        for path in (ROOT / folder).rglob("*.py"):
            for name in re.findall(r"\bDIPOLE_[A-Z0-9_]*[A-Z0-9]\b", path.read_text()):
                assert name in names, f"{name} in {path.relative_to(ROOT)}"


def test_decisions_end_with_what_violates_them() -> None:
    """Each decision record is numbered without a gap and closes with 'A change violates this when …'."""
    records = sorted((ROOT / "docs/adr").glob("*.md"))
    assert [int(path.name[:4]) for path in records] == list(range(1, len(records) + 1))
    for path in records:
        assert path.read_text().split("\n\n")[-1].startswith("A change violates this when "), path.name

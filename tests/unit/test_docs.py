"""The documents say what is true: commands, packages, links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from onefleet.cli.main import COMMANDS
from onefleet.core import lifecycle_diagrams as drawings

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [name for _, commands in COMMANDS for name, _, _ in commands]
DECISION_LINES_MAX = 100  # two printed pages


def test_the_command_reference_is_what_the_commands_say():
    from onefleet.cli.reference import reference

    written = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert written == reference(), "run: python -m onefleet.cli.reference > docs/cli.md"


@pytest.mark.parametrize(
    ("page", "draw"),
    [
        ("phases", [drawings.diagram]),
        (
            "moving",
            [
                drawings.life_diagram,
                drawings.moving_diagram,
                drawings.cut_diagram,
                drawings.failure_diagram,
            ],
        ),
    ],
)
def test_the_diagrams_are_the_table(page, draw):
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    assert re.findall(r"```mermaid\n(.*?)```", text, re.S) == [drawing() for drawing in draw]


@pytest.mark.parametrize("name", NAMES)
def test_every_command_is_in_the_readme(name):
    assert f"`{name}`" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_package_has_a_line_in_the_map():
    source = ROOT / "src" / "onefleet"
    packages = {p.name for p in source.iterdir() if (p / "__init__.py").is_file()}
    packages |= {p.stem for p in source.glob("*.py") if p.stem != "__init__"}
    rows = re.findall(r"^\| `onefleet\.(\w+)` \| \S.*\|$", (ROOT / "docs/map.md").read_text(), re.M)
    assert sorted(rows) == sorted(packages)


def test_files_that_the_map_and_the_checklists_name_exist():
    """A path in code marks is one of the repository, or of the package where it is shortened."""
    bases = (ROOT, ROOT / "src/onefleet", ROOT / "docs", *sorted((ROOT / "src/onefleet").iterdir()))
    missing = [
        f"{page.name}: {path}"
        for page in PAGES
        for path in re.findall(r"`([\w./-]+\.(?:py|md|toml))`", page.read_text(encoding="utf-8"))
        if not any((base / path).exists() for base in bases)
        and path not in ("train.py", "pyproject.toml")
    ]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    local = [t for t in targets if "://" not in t]
    assert [t for t in local if not (page.parent / t).exists()] == []


def test_decisions_are_numbered_and_short():
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [p.name[:4] for p in pages] == [f"{n:04d}" for n in range(1, len(pages) + 1)]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert text.startswith(f"# {page.name[:4]}: ")
        assert "Status: " in text
        assert len(text.splitlines()) <= DECISION_LINES_MAX

"""A newcomer finds each benchmark: a target, a section with figures, a command that its own docstring shows."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"
RESULTS = (FOLDER / "RESULTS.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
SCRIPTS = [file for file in sorted(FOLDER.glob("*.py")) if "ArgumentParser(" in file.read_text(encoding="utf-8")]
PAGES = [
    ROOT / "README.md",
    FOLDER / "RESULTS.md",
    *sorted((FOLDER / "results").glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]


def anchors(page: Path) -> set[str]:
    """What `#...` may name in a page, by GitHub's rule."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_target_that_measures_has_a_line_in_results_and_in_make_help() -> None:
    targets = re.findall(r"^(bench-[\w-]+|soak|fidelity|fuzz|schedule-identity):", MAKEFILE, re.MULTILINE)
    assert len(targets) > 20
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    told = set(re.findall(r"^[\w-]+", shown, re.MULTILINE))
    assert [target for target in targets if f"`make {target}" not in RESULTS] == []
    assert [target for target in targets if target not in told] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_links_to_a_section_lead_to_one(page: Path) -> None:
    for path, section in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not path.startswith("http"):
            assert section in anchors(page.parent / path if path else page), f"{path}#{section}"


@pytest.mark.parametrize("page", [page for page in PAGES if FOLDER in page.parents], ids=lambda page: page.name)
def test_files_that_results_name_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#\s]+)", text):
        assert (page.parent / link).exists(), link
    for name in re.findall(r"(?:benchmarks|tests)/[\w/]+\.(?:py|sh)", text):
        assert (ROOT / name).is_file(), name


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_every_script_shows_its_command_and_takes_the_flags_that_documents_give_it(script: Path) -> None:
    source = script.read_text(encoding="utf-8")
    shown = ast.get_docstring(ast.parse(source)) or ""
    assert re.search(rf"^ +(?:\S*python benchmarks/{script.name}|make )", shown, re.MULTILINE), "no command"
    takes = set(re.findall(r'"(--[a-z][\w-]*)"', source)) | {"--help"}
    for text in (shown, MAKEFILE, *(page.read_text(encoding="utf-8") for page in PAGES)):
        for line in re.findall(rf"benchmarks/{script.name}([^\n`|]*)", text):
            given = re.findall(r"(?<![\w-])(--[a-z][\w-]*)", line.split("  ##")[0].split(" # ")[0])
            assert [flag for flag in given if flag not in takes] == [], line


@pytest.mark.parametrize("script", sorted(FOLDER.rglob("*.py")), ids=lambda script: script.stem)
def test_every_file_has_a_docstring_and_fewer_than_400_lines(script: Path) -> None:
    source = script.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(source))
    assert source.count("\n") <= 400

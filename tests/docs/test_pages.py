"""Pages name verbs, flags, keys, routes and metrics that exist, and the index and llms.txt lead to all of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer

from penstock.catalog import architectures
from penstock.catalog.hardware_load import devices
from penstock.cli import VERBS, _load, _unwrapped
from penstock.deployment import Deployment, keys
from penstock.observe.alerts import unknown_names
from penstock.observe.definitions import by_name

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "llms.txt", *(ROOT / "docs").glob("*.md")])


def flags_of(verb: str) -> set[str]:
    """Every flag a verb takes."""
    app = typer.Typer()
    app.command(verb)(_load(verb))
    command: Any = typer.main.get_command(app)
    return {name for one in command.params for name in (*one.opts, *one.secondary_opts)} | {"--help"}


def commands(text: str) -> list[str]:
    """Command lines of `penstock` in a page: indented or fenced lines, and code in a sentence."""
    text = re.sub(r"\n {5,}(?=\[?--)", " ", text)  # a usage that goes on in the next line
    lines = [line.split(" #")[0] for line in text.splitlines() if re.match(r" {4}\S|\$ |penstock ", line)]
    return [
        found
        for one in (*lines, *re.findall(r"`([^`\n]+)`", text))
        for found in re.findall(r"(?:^|\s|/)penstock (?=[a-z-])((?:\[[^]]*\]|[^|>;#])*)", one)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_in_a_page_names_a_verb_and_flags_that_exist(page: Path) -> None:
    known: dict[str, set[str]] = {}
    for line in commands(page.read_text(encoding="utf-8")):
        words = line.split()
        if words[0].startswith("-") or words[0] == "VERB":
            continue
        assert words[0] in VERBS, line
        flags = known.setdefault(words[0], flags_of(words[0]))
        for flag in re.findall(r"(?:(?<=\s)|(?<=\[))(--?[a-z][\w.-]*)", line):
            assert flag in flags or flag == "--section.key", f"{flag} in: penstock {line}"


def test_every_verb_has_a_section_that_names_no_flag_it_lacks() -> None:
    parts = re.split(r"^## (.*)$", (ROOT / "docs" / "cli.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    sections = {verb: body for title, body in zip(parts[1::2], parts[2::2], strict=True) for verb in title.split(", ")}
    assert set(sections) == set(VERBS)
    for verb, body in sections.items():
        usage = "".join(line for line in body.splitlines(keepends=True) if line.startswith("    "))
        title = next(each for each in parts[1::2] if verb in each.split(", "))
        takes = set().union(*(flags_of(each) for each in title.split(", "))) | {"--section.key"}
        assert [flag for flag in re.findall(r"(?<![\w-])--[a-z][\w.-]*", usage) if flag not in takes] == [], verb


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_every_make_target_named_in_a_page_exists(page: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = re.findall(r"(?:^ {4}|`)make ([a-z][\w-]*)", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert [target for target in named if target not in targets] == []


def test_the_pages_count_models_and_devices_as_the_catalogue_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PENSTOCK_HARDWARE_DIR", str(tmp_path))
    for name in ("README.md", "docs/simulate.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert re.findall(r"# (\d+) (?:models by|public) name", text) == [str(len(architectures()))]
        assert re.findall(r"(\d+) devices", text) == [str(len(devices()))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_key_named_in_a_page_is_one_of_the_deployment_file(page: Path) -> None:
    sections = "|".join(Deployment.model_fields)
    text = page.read_text(encoding="utf-8")
    groups = {key.rpartition(".")[0] for key in keys()} | set(Deployment.model_fields)
    for name in re.findall(rf"`((?:{sections})\.[a-z_.]+?)(?:: [^`]*)?`", text):
        assert name in keys() or name in groups or name.endswith(".py"), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_metric_named_in_a_page_exists(page: Path) -> None:
    named = unknown_names(re.sub(r"penstock_\*|vllm:\*", "", page.read_text(encoding="utf-8")))
    assert [name for name in named if name not in by_name()] == []


def test_the_index_and_llms_txt_lead_to_every_page() -> None:
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    index = set(re.findall(r"\]\((\w[\w-]*\.md)", (ROOT / "docs" / "README.md").read_text(encoding="utf-8")))
    assert pages <= index
    programs = set(re.findall(r"\]\(docs/([\w-]+\.md)", (ROOT / "llms.txt").read_text(encoding="utf-8")))
    assert pages - programs <= {"deprecation.md"}


def test_a_verb_s_help_breaks_where_the_terminal_does() -> None:
    for verb in VERBS:
        paragraphs = _unwrapped(_load(verb)).split("\n\n")
        assert all(paragraph and "\n" not in paragraph for paragraph in paragraphs)

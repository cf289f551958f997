"""What the documents say is so: the table of keys, the examples, the links."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.deployment import Deployment

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *(ROOT / "docs").glob("*.md")])


def test_the_table_of_keys_is_that_of_the_code() -> None:
    done = subprocess.run([sys.executable, ROOT / "docs" / "generate.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda file: file.name)
def test_every_example_is_a_valid_deployment(file: Path) -> None:
    deployment = Deployment.load(file)
    assert deployment.model.path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_in_the_pages_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]+)", text)
    named = re.findall(r"`((?:control|engine|runtime|serve|workload|report|cli|catalog)/[\w/]+\.py)`", text)
    for link in links:
        assert link.startswith("http") or (page.parent / link).exists(), link
    for name in named:
        assert (ROOT / "src" / "penstock" / name).exists(), name


def test_every_yaml_block_of_the_deployment_page_is_valid() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8"), re.S)
    assert blocks
    import yaml

    for block in blocks:
        assert Deployment.parse(yaml.safe_load(block)).server.api_keys == ("change-me",)


def test_the_yaml_of_the_security_page_is_valid_and_what_security_md_names_exists() -> None:
    import yaml

    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "security.md").read_text(encoding="utf-8"), re.S)
    assert blocks
    for block in blocks:
        assert Deployment.parse(yaml.safe_load(block)).server.locked
    for name in re.findall(r"tests/[\w/]+\.py", (ROOT / "SECURITY.md").read_text(encoding="utf-8")):
        assert (ROOT / name).is_file(), name

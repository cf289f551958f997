"""What stands in code blocks of the pages works: YAML is a deployment, commands and bodies are understood."""

from __future__ import annotations

import ast
import contextlib
import importlib
import itertools
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from penstock.cli import VERBS, _load
from penstock.cli.elsewhere import rows
from penstock.cli.flags import load
from penstock.deployment import Deployment, keys
from penstock.errors import BadInput

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "recipes/millrace/README.md")]
    + list((ROOT / "docs").glob("*.md"))
)
PLACEHOLDERS = re.compile(
    r"\[|\.\.\.|…|\b(?:FILE|VERB|URL|PACE|LENGTHS|NAME|TRACE|DIR|MODEL|PROFILE|ADDRESS|PAPER|A B)\b"
)
"""What a reader fills in; such a line shows a form, and another test looks at its flags."""
OWN_RULE = "--policy.order longest"
"""The rule that docs/extending.md adds."""


def fenced(page: Path) -> Iterator[tuple[str, str]]:
    """Language and text of each fenced block."""
    yield from re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def typed(page: Path) -> Iterator[str]:
    """Command lines of a page, each in one line: indented or fenced, without prompt and comment."""
    text = re.sub(r" *\\\n +", " ", page.read_text(encoding="utf-8"))
    for line in text.splitlines():
        if found := re.match(r"(?: {4}(?! )|\$ )\s*(.*)", line):
            yield found[1].split("   #")[0].split("  #")[0].strip()


def blocks(language: str) -> list[Any]:
    return [
        pytest.param(text, id=f"{page.name}-{number}")
        for page in PAGES
        for number, (found, text) in enumerate(fenced(page))
        if found == language
    ]


@pytest.mark.parametrize("text", blocks("yaml"))
def test_yaml_that_looks_like_a_deployment_is_one(text: str, tmp_path: Path) -> None:
    content = yaml.safe_load(text)
    sections = set(Deployment.model_fields)
    assert isinstance(content, dict)
    if content.keys() & sections:
        assert content.keys() <= sections
        assert Deployment.parse(content).model.path


def test_files_to_deploy_hold_valid_settings_and_commands() -> None:
    manifests = list(yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text(encoding="utf-8")))
    config = next(one["data"]["penstock.yaml"] for one in manifests if one["kind"] == "ConfigMap")
    served = Deployment.parse(yaml.safe_load(config)).server
    pod = next(one["spec"]["template"]["spec"] for one in manifests if one["kind"] == "Deployment")
    assert pod["terminationGracePeriodSeconds"] > served.drain_timeout
    container = pod["containers"][0]
    ast.parse(container["readinessProbe"]["exec"]["command"][-1])
    assert {volume["name"] for volume in pod["volumes"]} == {mount["name"] for mount in container["volumeMounts"]}
    image = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    for source in re.findall(r"^COPY (.*) \S+$", image, re.MULTILINE):
        assert all((ROOT / name).exists() for name in source.split())
    proxy = (ROOT / "deploy" / "nginx.conf").read_text(encoding="utf-8")
    assert int(re.findall(r"client_max_body_size (\d+)m", proxy)[0]) * 10**6 >= Deployment().server.max_body_bytes


@pytest.mark.parametrize("text", blocks("python"))
def test_python_is_valid_and_imports_what_is_there(text: str) -> None:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "penstock":
            module = importlib.import_module(node.module)
            assert [each.name for each in node.names if not hasattr(module, each.name)] == []


def test_the_rule_of_ones_own_runs_as_the_page_shows_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from penstock.control import policy
    from penstock.control.order.queue import KeyedOrder

    if not hasattr(KeyedOrder.key, "__code__"):
        pytest.skip("compiled classes take no others below them")
    monkeypatch.setattr(policy, "ORDERS", dict(policy.ORDERS))
    text = next(text for language, text in fenced(ROOT / "docs" / "extending.md") if language == "python")
    exec(compile(text, "extending.md", "exec"), {"__name__": "extending"})
    expected = re.findall(r"print\(.*\)  # (.*)", text)
    assert capsys.readouterr().out.splitlines() == expected != []


def test_a_profile_is_read_as_the_page_shows_it(tmp_path: Path) -> None:
    from penstock.catalog.hardware_load import device
    from penstock.twin.measured import read_profile
    from penstock.twin.measured.learnable import read_points
    from penstock.twin.roofline import Roofline

    file = tmp_path / "kernels.csv"
    file.write_text(next(text for language, text in fenced(ROOT / "docs" / "extending.md") if language == "csv"))
    found = read_points([file])
    assert (len(found.points), dict(found.left_out)) == (3, {})
    assert read_profile(file, Roofline(device("h100-sxm")))


def lines(*programs: str) -> list[Any]:
    """Lines of all pages that begin with one of these programs."""
    return [
        pytest.param(line, id=f"{page.name}: {line}"[:120])
        for page in PAGES
        for line in dict.fromkeys(typed(page))
        if line.split(" ")[0].rpartition("/")[2] in programs and not PLACEHOLDERS.search(line)
    ]


@pytest.mark.parametrize("line", lines("penstock"))
def test_a_command_is_understood_with_all_its_values(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(line.split(" > ")[0].split(" | ")[0])[1:]
    if words[0] == "--options":
        words = words[2:]
    verb, arguments = words[0], words[1:]
    app = typer.Typer()
    app.command(verb)(_load(verb))
    command: Any = typer.main.get_command(app)
    if "--help" in arguments:
        return
    parsed = command.make_context(verb, list(arguments)).params
    assert verb in VERBS
    if verb in ("serve", "simulate") and OWN_RULE not in line:
        file = parsed["file"] if parsed["file"] is not None and parsed["file"].exists() else None
        given = {name: value for name, value in parsed.items() if name in {key.replace(".", "__") for key in keys()}}
        with contextlib.suppress(FileNotFoundError):
            load(file, None, given, reader=verb)


@pytest.mark.parametrize("line", lines("curl"))
def test_a_body_that_is_sent_is_json(line: str) -> None:
    words = shlex.split(line)
    for flag, body in itertools.pairwise(words):
        if flag == "-d":
            assert isinstance(json.loads(body), dict)
            assert "Content-Type: application/json" in words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_headings_that_are_there(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s:]*)#([^)\s]+)\)", page.read_text(encoding="utf-8")):
        file = (page.parent / target) if target else page
        assert anchor in anchors(file), f"{target}#{anchor}"


def anchors(file: Path) -> set[str]:
    """Of a page's headings, as the sites that show Markdown make them."""
    titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_flags_of_other_servers_are_none_of_ours_and_lead_to_keys_that_exist() -> None:
    app = typer.Typer()
    app.command("serve")(_load("serve"))
    app.command("simulate")(_load("simulate"))
    group: Any = typer.main.get_command(app)
    own = {name for verb in group.commands.values() for one in verb.params for name in (*one.opts, *one.secondary_opts)}
    for row in rows():
        assert not own & {flag for names in row.flags for flag in names}
        assert all(key in keys() for key in row.keys)
        assert row.keys or row.note


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["serve", "--max-num-seqs", "64"], "a flag of vLLM, and not of ours. Remedy: --policy.max-seqs"),
        (["serve", "dir", "--api-key=secret"], "Remedy: --server.api-keys"),
        (["simulate", "--tensor-parallel-size", "4"], "Remedy: --layout.tensor-parallel"),
        (["serve", "--enable-metrics"], "Remedy: leave it out"),
        (["serve", "--hf-token", "secret"], "Remedy: leave it out"),
    ],
)
def test_a_flag_of_another_server_is_refused_with_ours(words: list[str], told: str) -> None:
    from penstock.cli.elsewhere import point_out

    with pytest.raises(BadInput) as caught:
        point_out(words[0], words)
    assert told in str(caught.value)
    assert "secret" not in str(caught.value)
    point_out("bench", words)

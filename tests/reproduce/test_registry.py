"""The room of reproductions, and the verb that shows it."""

from __future__ import annotations

import json
import re
from importlib import import_module

import pytest
import typer
from typer.testing import CliRunner

from penstock.cli.reproduce import reproduce as verb
from penstock.errors import BadInput
from penstock.reproduce import registry
from penstock.reproduce.registry import PAPERS, Reproduction, Sheet, reproduce

QUICK = ("genz", "hopper-dissect", "idealized-runtime", "long-context-peak")
APP = typer.Typer()
APP.command()(verb)


def sheet(ours: float) -> Reproduction:
    made = Sheet()
    made.within("a claim", 10.0, ours, "s", 0.05, "a table")
    made.info("for information", 1.5, "s", "ours alone")
    made.note("what is missing")
    return made.close("genz")


@pytest.mark.parametrize("name", QUICK)
def test_the_paper_is_reproduced(name: str) -> None:
    result = reproduce(name)
    assert [row.claim for row in result.rows if row.verdict == "fail"] == []
    assert sum(row.verdict == "pass" for row in result.rows) >= 8
    assert all(row.source for row in result.rows)
    assert len({row.claim for row in result.rows}) == len(result.rows)


@pytest.mark.parametrize("module", [module for module, _ in PAPERS.values()])
def test_every_module_names_its_paper(module: str) -> None:
    found = import_module(f"penstock.reproduce.{module}")
    assert re.search(r"arXiv \d{4}\.\d{5}|ISC 2016", found.__doc__ or "")
    assert callable(found.run)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(BadInput, match="genz"):
        reproduce("gens")
    with pytest.raises(BadInput, match="long-context-peak"):
        reproduce("zzz")


def test_verdicts() -> None:
    made = Sheet()
    made.within("in", 10.0, 10.4, "", 0.05, "s")
    made.within("out", 10.0, 9.4, "", 0.05, "s")
    made.within("negative", -0.32, -0.316, "", 0.02, "s")
    made.at_least("low", 1.0, 0.9, "", "s")
    made.at_most("high", 1.0, 1.1, "", "s")
    made.equal("same", 3, 3.0, "", "s")
    made.within("nan", 1.0, float("nan"), "", 0.5, "s")
    assert [row.verdict for row in made.rows] == ["pass", "fail", "pass", "fail", "fail", "pass", "fail"]


def test_the_list() -> None:
    shown = CliRunner().invoke(APP, [])
    assert shown.exit_code == 0
    assert [line.split()[0] for line in shown.stdout.splitlines()] == list(PAPERS)
    assert json.loads(CliRunner().invoke(APP, ["--json"]).stdout) == {name: line for name, (_, line) in PAPERS.items()}


@pytest.mark.parametrize(("ours", "code"), [(10.1, 0), (12.0, 1)])
def test_exit_code_and_output_follow_the_verdicts(ours: float, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.cli.reproduce.run_reproduction", lambda name: sheet(ours))
    shown = CliRunner().invoke(APP, ["genz"])
    assert shown.exit_code == code
    assert "a claim" in shown.stdout
    assert "note: what is missing" in shown.stdout
    assert f"{1 - code} of 1 claims reproduced" in shown.stdout
    asked = CliRunner().invoke(APP, ["genz", "--json"])
    data = json.loads(asked.stdout)
    assert asked.exit_code == code
    assert data["passed"] is (code == 0)
    assert data["rows"][0] == {
        "claim": "a claim", "paper": 10.0, "ours": ours, "unit": "s", "verdict": "pass" if code == 0 else "fail",
        "tolerance": "±5 %", "source": "a table",
    }  # fmt: skip
    assert data["rows"][1]["paper"] is None


def test_modules_are_loaded_on_use() -> None:
    assert not any(hasattr(registry, module) for module, _ in PAPERS.values())

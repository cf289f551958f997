"""What is made from the metric definitions: no dashboard panel and no alert asks for a name that nobody exposes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from penstock.observe.alerts import ALERTS, rules, unknown_names
from penstock.observe.definitions import DEFINITIONS, NATIVE, by_name
from penstock.observe.grafana import dashboard, expressions
from penstock.observe.reference import reference

ROOT = Path(__file__).parents[2]


def test_names_are_unique_and_each_vllm_metric_repeats_one_of_its_own_type() -> None:
    assert len(by_name()) == len(DEFINITIONS)
    for one in DEFINITIONS:
        if one.same_as:
            native = by_name()[one.same_as]
            assert (native.kind, native.buckets) == (one.kind, one.buckets)


def test_every_query_of_the_dashboard_asks_for_metrics_that_exist() -> None:
    asked = list(expressions(dashboard()))
    assert len(asked) > 30
    for expression in asked:
        assert unknown_names(expression) == [], expression
        assert "penstock_" in expression


def test_every_metric_with_a_row_has_its_panel_and_panels_do_not_overlap() -> None:
    board = json.loads(dashboard())
    described = " ".join(panel.get("description", "") for panel in board["panels"])
    for one in NATIVE:
        assert (one.exposed[0] in described) == bool(one.row), one.name
    seen: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & seen
        assert place["x"] + place["w"] <= 24
        seen |= cells
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_every_alert_asks_for_metrics_that_exist_and_leads_to_a_heading_of_the_guide() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    anchors = {
        re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", page, re.M)
    }
    for alert in ALERTS:
        assert unknown_names(alert.expression) == [], alert.name
        assert "penstock_" in alert.expression or "vllm:" in alert.expression
        assert alert.guide in anchors, alert.guide
    assert len(yaml.safe_load(rules())["groups"][0]["rules"]) == len(ALERTS)


def test_a_name_nobody_exposes_is_found() -> None:
    assert unknown_names("rate(penstock_nothing_total[5m]) / vllm:prompt_tokens_total") == ["penstock_nothing_total"]
    assert unknown_names("penstock_steps_total{a='b'}") == []


def test_the_reference_names_every_metric() -> None:
    text = reference()
    for one in DEFINITIONS:
        assert f"`{one.name}`" in text or f"`{one.exposed[0]}`" in text


def test_every_query_is_one_that_prometheus_can_parse() -> None:
    promql = pytest.importorskip("promql_parser", reason="promql-parser is not installed")
    for alert in ALERTS:
        assert promql.parse(alert.expression) is not None
    for expression in expressions(dashboard()):
        if not expression.startswith("label_values("):  # Grafana's own
            filled = expression.replace("$__rate_interval", "1m").replace("$instance", ".*")
            assert promql.parse(filled) is not None


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_accepts_the_rules(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(rules())
    done = subprocess.run(["promtool", "check", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

"""A Grafana dashboard made from the metric definitions: a row per `Definition.row`, a panel per metric in it.

The rule for a panel follows from the type alone: a gauge is drawn as it is, a counter as its rate per second, a
histogram as its median, p95 and p99. So a metric that is added with a row is on the dashboard with no other change.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final

from penstock.observe.definitions import NATIVE, Definition

UID: Final = "penstock"
_WIDTH, _HEIGHT, _COLUMNS = 8, 7, 24
_UNITS: Final = {"seconds": "s", "bytes": "bytes", "share": "percentunit"}
_SOURCE: Final = {"type": "prometheus", "uid": "${source}"}
_WHERE: Final = 'instance=~"$instance"'


def dashboard() -> str:
    """The JSON that Grafana imports (10 or later); its data source is asked for on import."""
    panels: list[dict[str, Any]] = []
    top = 0
    for row in dict.fromkeys(one.row for one in NATIVE if one.row):
        members = [one for one in NATIVE if one.row == row]
        panels.append(
            {"type": "row", "title": row, "id": len(panels) + 1, "collapsed": False, "panels": [],
             "gridPos": {"x": 0, "y": top, "w": _COLUMNS, "h": 1}}
        )  # fmt: skip
        for number, one in enumerate(members):
            x, y = number * _WIDTH % _COLUMNS, top + 1 + number * _WIDTH // _COLUMNS * _HEIGHT
            panels.append(_panel(one, len(panels) + 1, {"x": x, "y": y, "w": _WIDTH, "h": _HEIGHT}))
        top += 1 + -(-len(members) * _WIDTH // _COLUMNS) * _HEIGHT
    board = {
        "uid": UID,
        "title": "Penstock",
        "tags": ["llm", "penstock"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {
            "list": [
                {"name": "source", "type": "datasource", "query": "prometheus", "label": "Data source"},
                {"name": "instance", "type": "query", "label": "Instance", "datasource": _SOURCE, "refresh": 2,
                 "query": "label_values(penstock_ready, instance)", "includeAll": True, "multi": True,
                 "allValue": ".*", "current": {"text": "All", "value": "$__all"}},
            ]
        },
        "panels": panels,
    }  # fmt: skip
    return json.dumps(board, indent=1) + "\n"


def expressions(board: str) -> Iterable[str]:
    """Every query of a dashboard, its variables' included."""
    data = json.loads(board)
    for panel in data["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]
    for variable in data["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]


def _panel(one: Definition, number: int, place: dict[str, int]) -> dict[str, Any]:
    targets = [
        {"refId": chr(ord("A") + index), "expr": expression, "legendFormat": legend, "datasource": _SOURCE}
        for index, (expression, legend) in enumerate(_queries(one))
    ]
    unit = _UNITS.get(one.unit, "short")
    if one.kind == "counter":
        unit = "cps"
    return {
        "type": "timeseries",
        "id": number,
        "title": one.name.removeprefix("penstock_").replace("_", " "),
        "description": f"{one.text} ({one.exposed[0]})",
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": unit, "min": 0, "custom": {"fillOpacity": 8}}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": targets,
    }


def _queries(one: Definition) -> list[tuple[str, str]]:
    """(expression, legend) pairs."""
    by = f" by ({', '.join(one.labels)})" if one.labels else ""
    legend = " ".join(f"{{{{{label}}}}}" for label in one.labels)
    match one.kind:
        case "gauge":
            if not by:
                return [(f"{one.name}{{{_WHERE}}}", "{{instance}}")]
            return [(f"sum{by} ({one.name}{{{_WHERE}}})", legend)]
        case "counter":
            rate = f"rate({one.exposed[0]}{{{_WHERE}}}[$__rate_interval])"
            return [(f"sum{by} ({rate})", legend or "per second")]
    bucket = f"sum by (le) (rate({one.name}_bucket{{{_WHERE}}}[$__rate_interval]))"
    return [
        (f"histogram_quantile({share}, {bucket})", name) for share, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
    ]

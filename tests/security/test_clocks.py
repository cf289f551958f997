"""A clock that is set back or forward changes no wait, limit or latency: what counts time reads the monotonic one.

The wall clock is read only where a time of day is what is wanted, and those places are listed here.
"""

from __future__ import annotations

import ast

from test_source_rules import dotted, trees

STAMPS = {
    "src/penstock/serve/app.py": "`created` of models",
    "src/penstock/serve/front.py": "`created` of answers",
    "src/penstock/observe/tracing.py": "spans, which are dated",
    "src/penstock/engine/template_sandbox.py": "strftime_now, for templates that tell the model the date",
}
WALL = {"time", "time_ns", "now", "utcnow", "today", "localtime", "gmtime"}


def last(node: ast.expr) -> str:
    return dotted(node).rpartition(".")[2]


def readings(tree: ast.Module) -> set[str]:
    """Names under which a module reads the wall clock."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            found |= {one.name for one in node.names} & WALL
        elif isinstance(node, ast.Attribute) and node.attr in WALL and last(node.value) in {"time", "datetime", "date"}:
            found.add(dotted(node))
    return found


def test_the_wall_clock_is_read_for_time_stamps_alone() -> None:
    found = {name for name, tree in trees() if readings(tree)}
    assert found == set(STAMPS)


def test_every_way_of_reading_it_is_seen() -> None:
    for text in ("import time\ntime.time()", "from time import monotonic, time", "datetime.now()", "x.date.today()"):
        assert readings(ast.parse(text)), text
    for text in ("import time\ntime.monotonic()", "from time import perf_counter", "loop.time()", "datetime.UTC"):
        assert not readings(ast.parse(text)), text

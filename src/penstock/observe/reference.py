"""docs/metrics.md's tables, from the definitions."""

from __future__ import annotations

from collections.abc import Iterable

from penstock.observe.definitions import NATIVE, VLLM, Definition


def reference() -> str:
    """Native names, then vLLM's, in Markdown."""
    return "\n\n".join(("### Native names", _table(NATIVE), "### Names that vLLM's tools read", _table(VLLM)))


def _table(definitions: Iterable[Definition]) -> str:
    rows = ["| name | type | labels | meaning |", "|---|---|---|---|"]
    for one in definitions:
        name = one.exposed[0] if one.kind == "counter" else one.name
        labels = ", ".join(f"`{label}`" for label in one.labels) or "none"
        text = one.text + (f" As `{one.same_as}`." if one.same_as else "")
        rows.append(f"| `{name}` | {one.kind} | {labels} | {text}{_bounds(one)} |")
    return "\n".join(rows)


def _bounds(one: Definition) -> str:
    if one.kind != "histogram" or one.same_as:
        return ""
    if one.buckets == "tokens":
        return " Buckets: 1, 2, 5, 10, 20, ... to the model's context."
    return " Buckets: " + " ".join(f"{bound:g}" for bound in one.buckets if not isinstance(bound, str)) + "."

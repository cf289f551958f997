"""The requests of a simulation one by one, as `penstock bench --out` writes those of a measurement."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, cast

from penstock.report.latency import Outcome, RequestRecord, as_row
from penstock.report.simulation import OUTCOMES, UNFINISHED, RequestColumns


def records_of(columns: RequestColumns) -> Iterator[RequestRecord]:
    """Those that ended, a record each, with the token times that `RequestColumns.times` gives."""
    rows = zip(
        columns.arrival_s.tolist(), columns.finish_s.tolist(), columns.prompt_tokens.tolist(),
        columns.output_tokens.tolist(), columns.cached_tokens.tolist(), columns.outcome.tolist(), strict=True,
    )  # fmt: skip
    for index, (arrival, finish, prompt, output, cached, outcome) in enumerate(rows):
        if outcome != UNFINISHED:
            yield RequestRecord(
                index=index, arrival_s=arrival, sent_s=arrival, end_s=finish, prompt_tokens=prompt,
                output_tokens=output, token_s=columns.times(index), outcome=cast("Outcome", OUTCOMES[outcome]),
                cached_tokens=cached,
            )  # fmt: skip


def request_lines(columns: RequestColumns) -> str:
    """One JSON line each; where token times are not kept, `first_token_s` and `last_token_s` stand in their place."""
    shown = _ends_alone if columns.token_s is None else as_row
    rows = ({"stage": "simulated", **shown(record)} for record in records_of(columns))
    return "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)


def _ends_alone(record: RequestRecord) -> dict[str, Any]:
    row = as_row(record)
    first, last = row.pop("token_s") or (None, None)
    return row | {"first_token_s": first, "last_token_s": last}

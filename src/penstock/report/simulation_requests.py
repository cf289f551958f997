"""The requests of a simulation one by one, as `penstock bench --out` writes those of a measurement."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, cast

from penstock.report.latency import Outcome, RequestRecord, as_row
from penstock.report.simulation import OUTCOMES, UNFINISHED, RequestColumns


def records_of(columns: RequestColumns) -> Iterator[RequestRecord]:
    """Those that ended, a record each; its token times are that of the first token and that of the last."""
    rows = zip(
        columns.arrival_s.tolist(), columns.first_token_s.tolist(), columns.finish_s.tolist(),
        columns.prompt_tokens.tolist(), columns.output_tokens.tolist(), columns.cached_tokens.tolist(),
        columns.outcome.tolist(), strict=True,
    )  # fmt: skip
    for index, (arrival, first, finish, prompt, output, cached, outcome) in enumerate(rows):
        if outcome != UNFINISHED:
            yield RequestRecord(
                index=index, arrival_s=arrival, sent_s=arrival, end_s=finish, prompt_tokens=prompt,
                output_tokens=output, token_s=() if first != first else (first, finish),
                outcome=cast("Outcome", OUTCOMES[outcome]), cached_tokens=cached,
            )  # fmt: skip


def request_lines(columns: RequestColumns) -> str:
    """One JSON line each, with `first_token_s` and `last_token_s` in the place of all token times."""
    return "".join(json.dumps(_row(record), separators=(",", ":")) + "\n" for record in records_of(columns))


def _row(record: RequestRecord) -> dict[str, Any]:
    row = {"stage": "simulated", **as_row(record)}
    first, last = row.pop("token_s") or (None, None)
    return row | {"first_token_s": first, "last_token_s": last}

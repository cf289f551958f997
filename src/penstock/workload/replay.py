"""A trace as a source: requests at their own times, with the prefixes they had."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from penstock.workload.bodies import TraceBodies
from penstock.workload.source import TimedRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """Open loop over the rows of a trace."""

    bodies: TraceBodies

    @property
    def block_tokens(self) -> int:
        return self.bodies.block_tokens

    @property
    def requests(self) -> int | None:
        return len(self.bodies.trace)

    @property
    def notes(self) -> tuple[str, ...]:
        return self.bodies.trace.notes

    def initial(self) -> Iterator[TimedRequest]:
        rows = zip(self.bodies.trace.requests, self.bodies.draw(), strict=True)
        for index, (row, (prompt, output, prefix, tenant, priority, cut)) in enumerate(rows):
            yield TimedRequest(
                index, row.arrival_s, prompt, output, prefix, row.session, 0, tenant, priority, cut
            )  # fmt: skip

    def after(self, request: TimedRequest, finished_s: float) -> None:
        return None

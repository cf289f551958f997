"""ServeGen pools (alibaba/ServeGen, Apache-2.0): clients, each with its own rate, burstiness and lengths over days.

A pool is not a list of requests but what they are drawn from. For every client and window of 600 s it has a rate and a
renewal law of the gaps (Gamma or Weibull, by shape), and for windows of six hours the probability of each length.

    arrivals   a window holds the recorded number of requests (rate x 600 s, times the scale asked for, rounded up or
               down at random); the gaps between them are drawn from the client's law and stretched to fill the window
    lengths    input_tokens and output_tokens, apart; multimodal: text_tokens and image_count times image_tokens

Clients stay apart (the tenant of a request is its client, c0, c1, ...) because bursts come from single clients.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from penstock.errors import BadInput
from penstock.workload.bodies import BATCH, Marks
from penstock.workload.formats.servegen_pool import WINDOW_S, Client, Law, Pool, read_pool
from penstock.workload.source import SOURCE_BLOCK_TOKENS, TimedRequest

_ARRIVALS, _LENGTHS = 31, 32
MAGIC: Final = b"PAR1"
SUFFIX: Final = "-trace.parquet"

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def is_pool(path: Path, format_name: str = "auto") -> bool:
    """Whether the file is a pool rather than a list of requests; False as well where it cannot be read."""
    if format_name != "auto":
        return format_name == "servegen"
    try:
        with path.open("rb") as file:
            return file.read(4) == MAGIC
    except OSError:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeGen:
    """Open loop over a pool from `begin_s` on; ends with the pool if not before."""

    pool: Pool
    scale: float = 1.0
    """On the rate of every client."""
    speed: float = 1.0
    begin_s: float = 0.0
    marks: Marks = Marks()  # noqa: RUF009 - immutable
    count: int | None = None
    duration_s: float | None = None
    context_tokens: int | None = None
    seed: int = 0
    notes: tuple[str, ...] = ()

    @classmethod
    def read(
        cls, path: Path, *, rate: float | None = None, speed: float = 1.0, begin_s: float = 0.0,
        marks: Marks | None = None, count: int | None = None, duration_s: float | None = None,
        context_tokens: int | None = None, seed: int = 0,
    ) -> ServeGen:  # fmt: skip
        """From `NAME-trace.parquet` with `NAME-dataset.parquet` beside it.

        With a `rate` all clients are scaled so that the part of the pool that the run covers has this mean rate.

        Raises:
            BadInput: unreadable or wrong files, no pyarrow, or no traffic where the run begins.
        """
        pool = read_pool(path)
        made = cls(
            pool=pool, speed=speed, begin_s=begin_s, marks=marks or Marks(), count=count, duration_s=duration_s,
            context_tokens=context_tokens, seed=seed, notes=pool.notes,
        )  # fmt: skip
        whole = pool.rate(begin_s, pool.end_s) if begin_s < pool.end_s else 0.0
        span_s = duration_s if duration_s is not None else (count or 1) / (rate or speed * whole or 1.0)
        own = speed * pool.rate(begin_s, min(pool.end_s, begin_s + speed * span_s)) if whole else 0.0
        if own == 0:
            raise BadInput(
                field="workload.begin_s", value=begin_s, why=f"{path.name} has no traffic there",
                remedy=f"a time from 0 to {pool.end_s:.0f} with traffic",
            )  # fmt: skip
        if rate is None:
            return made
        note = f"rates of all clients x {rate / own:.4g} for a mean of {rate:g} requests/s"
        return replace(made, scale=rate / own, notes=(*pool.notes, note))

    @property
    def block_tokens(self) -> int:
        return SOURCE_BLOCK_TOKENS

    @property
    def requests(self) -> int | None:
        return None

    def initial(self) -> Iterator[TimedRequest]:
        end = float("inf") if self.duration_s is None else self.duration_s
        draw_marks = self.marks.drawer(self.seed)
        names = [f"c{client.number}" for client in self.pool.clients]
        index = 0
        for arrivals, prompts, outputs, clients in self._batches():
            lengths = outputs.tolist()
            tenants, priorities, cuts = draw_marks(lengths)
            if not self.marks.tenants:
                tenants = [names[client] for client in clients.tolist()]
            for arrival_s, prompt, output, tenant, priority, cut in zip(
                arrivals.tolist(), prompts.tolist(), lengths, tenants, priorities, cuts, strict=True
            ):
                if arrival_s >= end or index == self.count:
                    return
                yield TimedRequest(index, arrival_s, prompt, output, None, None, 0, tenant, priority, cut)
                index += 1

    def after(self, request: TimedRequest, finished_s: float) -> None:
        return None

    def _batches(self) -> Iterator[tuple[Floats, Ints, Ints, Ints]]:
        """(arrival s, prompt tokens, output tokens, index of the client), by arrival, BATCH or fewer at a time."""
        arrival_draws, length_draws = (
            [np.random.default_rng([self.seed, purpose, client.number]) for client in self.pool.clients]
            for purpose in (_ARRIVALS, _LENGTHS)
        )
        first = int(self.begin_s // WINDOW_S)
        for window in range(first, round(self.pool.end_s / WINDOW_S)):
            parts = [
                self._client(client, window * WINDOW_S, arrival_draws[which], length_draws[which])
                for which, client in enumerate(self.pool.clients)
            ]
            times = np.concatenate([part[0] for part in parts])
            owners = np.repeat(np.arange(len(parts)), [part[0].size for part in parts])
            prompts, outputs = (np.concatenate([part[column] for part in parts]) for column in (1, 2))
            order = np.argsort(times, kind="stable")
            order = order[times[order] >= self.begin_s]
            for begin in range(0, order.size, BATCH):
                rows = order[begin : begin + BATCH]
                yield (times[rows] - self.begin_s) / self.speed, prompts[rows], outputs[rows], owners[rows]

    def _client(
        self, client: Client, window_s: float, arrivals: np.random.Generator, lengths: np.random.Generator
    ) -> tuple[Floats, Ints, Ints]:
        """One client's requests in one window."""
        law = client.laws.get(round(window_s))
        count = 0 if law is None else int(law.rate * self.scale * WINDOW_S + arrivals.random())
        if law is None or not count:
            return np.empty(0), np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        times = window_s + WINDOW_S * _stretched(law, count, arrivals)
        prompts, outputs = client.lengths.draw(window_s, count, lengths)
        if self.context_tokens is not None:
            outputs = np.minimum(outputs, self.context_tokens - 1)
            prompts = np.minimum(prompts, self.context_tokens - outputs)
        return times, prompts, outputs


def _stretched(law: Law, count: int, generator: np.random.Generator) -> Floats:
    """[count] ascending times in 0 to 1: `count` + 1 gaps of the law, scaled to add up to 1."""
    shape = law.shape
    gaps = generator.gamma(shape, 1 / shape, count + 1) if law.gamma else generator.weibull(shape, count + 1)
    whole = float(gaps.sum())
    if not 0 < whole < float("inf"):  # so small a shape that every gap underflows: all at one time, anywhere
        return np.full(count, generator.random())
    return np.minimum(np.cumsum(gaps[:-1]) / whole, np.nextafter(1.0, 0.0))

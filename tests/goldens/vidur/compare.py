"""Vidur's recorded passes beside those of the real control plane on the twin, with Vidur's tables for a price."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.control.policy import build_replica
from penstock.control.request import Request
from penstock.control.step import Step, Update
from penstock.runtime.instance import IDLE, Instance, Observer
from penstock.twin.twin import Row, Twin
from penstock.twin.vidur import VidurPrice, VidurTables, read_predictions

Array = NDArray[Any]
TOLERANCE_S = 1e-9


@dataclass(frozen=True)
class Passes:
    """A schedule: P passes with rows, R requests, C prefill chunks; numbers count from 0, times are seconds."""

    begin_s: Array
    end_s: Array
    """[P] each."""
    tokens: Array
    requests: Array
    """[P] rows, and who shares them."""
    chunks: Array
    """[C, 3] pass, request, tokens; in order within a pass."""
    decodes: Array
    """[D, 3] request, first pass, last pass: it makes one token in each of them; in this order."""
    evictions: Array
    """[E, 2] pass, request: evicted when that pass was planned."""
    first_token_s: Array
    completed_s: Array
    """[R] each."""


@dataclass(frozen=True)
class Golden:
    """One run of Vidur (record.py): settings, requests, tables, passes."""

    about: Mapping[str, Any]
    arrival_s: Array
    prompt_tokens: Array
    output_tokens: Array
    tables: VidurTables
    passes: Passes

    @classmethod
    def read(cls, path: Path, cache: Path | None = None) -> Golden:
        """`cache`: where Vidur left its tables; None: they are in the file."""
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        about = json.loads(arrays["about"].tobytes())
        operators = (
            read_predictions(cache)
            if cache is not None
            else {
                name.removeprefix("ms "): dict(
                    zip(map(tuple, arrays["keys" + name[2:]].tolist()), arrays[name].tolist(), strict=True)
                )
                for name in arrays
                if name.startswith("ms ")
            }
        )
        tables = VidurTables(
            operators, about["layers"], about["granularity"], about["decode_overhead"], about["prefill_overhead"],
            about["all_reduce_extra_ms"],
        )  # fmt: skip
        ends = np.cumsum(arrays["end_ps_steps"])
        before = np.concatenate([[0], ends[:-1]])
        times = {
            "begin_s": (before + arrays["begin_ps_waits"]) / 1e12, "end_s": ends / 1e12,
            "first_token_s": arrays["first_token_ps"] / 1e12, "completed_s": arrays["completed_ps"] / 1e12,
        }  # fmt: skip
        passes = Passes(
            tokens=arrays["pass_tokens"], requests=arrays["pass_requests"], chunks=arrays["chunks"],
            decodes=arrays["decodes"], evictions=arrays["evictions"],
            **{name: arrays.get(name, time) for name, time in times.items()},
        )  # fmt: skip
        return cls(about, arrays["arrival_s"], arrays["prompt_tokens"], arrays["output_tokens"], tables, passes)


class Watch(Observer):
    """Writes down the passes of one instance: O(changes) each, as the control plane itself."""

    def __init__(self, requests: int) -> None:
        self.begins: list[float] = []
        self.ends: list[float] = []
        self.tokens: list[int] = []
        self.sizes: list[int] = []
        self.chunks: list[tuple[int, int, int]] = []
        self.first, self.completed = [math.nan] * requests, [math.nan] * requests
        self.decodes: list[tuple[int, int, int]] = []
        self.decoding: dict[str, int] = {}
        """Who decodes, and since which pass."""
        self.evictions: list[tuple[int, int]] = []
        self.joining: list[str] = []
        """Whose prompt the step told last completed."""

    def stepped(self, instance: Instance, step: Step, started: float, ended: float) -> None:
        at = len(self.ends)
        self.joining = []
        self.evictions += [(at, int(name)) for name in step.evict]
        for name in (*step.release, *step.evict, *step.pause):
            since = self.decoding.pop(name, None)
            if since is not None:
                self.decodes.append((int(name), since, at - 1))
        for name in step.join:
            self.decoding[name] = at
        if step.decoding != len(self.decoding) and step.tokens:
            raise AssertionError(f"pass {at}: {step.decoding} of {len(self.decoding)} decode")
        if step.tokens:  # a step without rows only tells the executor whom to forget
            self.chunks += [(at, int(chunk.id), chunk.tokens) for chunk in step.chunks]
            self._note(started, ended, step.tokens, step.decoding + len(step.chunks))

    def coasted(self, instance: Instance, started: float, ends: Sequence[float]) -> None:
        for name in self.joining:
            self.decoding[name] = len(self.ends)
        self.joining = []
        for end in ends:
            self._note(started, end, len(self.decoding), len(self.decoding))
            started = end

    def first_token(self, row: Row, now: float) -> None:
        if math.isnan(self.first[row.index]):  # again after an eviction
            self.first[row.index] = now
        self.joining.append(row.id)

    def ended(self, row: Row, update: Update, now: float) -> None:
        self.completed[row.index] = now

    def passes(self) -> Passes:
        """What was seen."""
        return Passes(
            *map(np.array, (self.begins, self.ends, self.tokens, self.sizes, self.chunks, sorted(self.decodes))),
            np.array(self.evictions, np.int32).reshape(-1, 2), np.array(self.first), np.array(self.completed),
        )  # fmt: skip

    def _note(self, begin: float, end: float, tokens: int, size: int) -> None:
        self.begins.append(begin)
        self.ends.append(end)
        self.tokens.append(tokens)
        self.sizes.append(size)


def instance(golden: Golden, observer: Any, *, coast: bool = True) -> Instance:
    """The replica that Vidur's settings describe, on the twin, at Vidur's price."""
    about = golden.about
    blocks, kept = about["num_blocks"], about["watermark_blocks"]
    replica = build_replica(
        policy="sarathi", order="arrival", memory="paged", blocks=blocks, block_tokens=about["block_size"],
        max_sequence_tokens=blocks * about["block_size"], token_budget=about["chunk_size"],
        max_seqs=about["batch_size_cap"],
        # Vidur rounds its share down to whole blocks, control rounds up: half a block less gives the same number.
        watermark=max(0.0, kept - 0.5) / blocks,
    )  # fmt: skip
    return Instance(0, replica, Twin(VidurPrice(golden.tables)), observer, plan_ahead=False, coast=coast)


def run(golden: Golden, one: Instance) -> float:
    """All requests, to the end. Returns CPU seconds. Who comes at the very end of a pass is there for the next one, as
    in Vidur's event queue."""
    started = time.process_time()
    arrivals: Iterator[tuple[int, tuple[float, int, int]]] = enumerate(
        zip(golden.arrival_s.tolist(), golden.prompt_tokens.tolist(), golden.output_tokens.tolist(), strict=True)
    )
    coming = next(arrivals, None)
    while coming is not None or one.wake != IDLE:
        now = coming[1][0] if coming is not None else IDLE
        if now > one.wake:
            one.horizon = now
            one.fire()
            continue
        while coming is not None and coming[1][0] == now:
            number, (_, prompt, output) = coming
            # The bound is loose: how long an output gets is the twin's secret.
            request = Request(id=str(number), prompt=range(prompt), max_tokens=2 * output)
            one.submit(request, now, output_tokens=output, index=number)
            coming = next(arrivals, None)
        one.horizon = coming[1][0] if coming is not None else IDLE
        one.start(now)
    return time.process_time() - started


def differences(theirs: Passes, ours: Passes) -> tuple[list[str], float]:
    """In words, first one of each kind; and the largest difference of two times, in seconds."""
    said, most = [], 0.0
    for name in (field.name for field in fields(Passes)):
        expected, found = getattr(theirs, name), getattr(ours, name)
        length = min(len(expected), len(found))
        if len(expected) != len(found):
            said.append(f"{name}: {len(found)}, not {len(expected)}")
        expected, found = expected[:length], found[:length]
        if name.endswith("_s"):
            gaps = np.abs(expected - found)
            most = max(most, float(gaps.max(initial=0.0)))
            wrong = np.flatnonzero(~(gaps <= TOLERANCE_S))
        else:
            wrong = np.unique(np.nonzero(expected != found)[0])
        if len(wrong):
            at = int(wrong[0])
            said.append(f"{name}[{at}] is {found[at]}, not {expected[at]} ({len(wrong)} differ)")
    return said, most

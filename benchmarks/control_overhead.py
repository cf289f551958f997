"""What a decision costs: planning time per step by batch size, and its share of a real step of the model in the box.

Contract 2 says that planning costs O(changes), not O(batch). Two loads, each at batch 8, 64, 256 and 1,024:

    steady    the whole batch decodes; a sequence takes a new KV block every block_tokens steps
    churn     beside that, one request ends and one enters in every step, whatever the batch

Prediction, written before the first run: a step object and its bookkeeping cost 5 us; 1,024 sequences with 16-token
blocks take 64 blocks a step at 0.1 us each, so steady planning is below 12 us, under 2x of batch 8. It was: 6.8 us at
batch 8, 12.2 us at 1,024, and the blocks are the difference.

    python benchmarks/control_overhead.py [--no-engine] [--json]

The last line is JSON. `plan_us` are medians over the steps; `share` is (plan + commit) / the engine's own step time.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from dataclasses import dataclass, field
from itertools import count

from rich.console import Console
from rich.table import Table

from penstock.control.policy import build_replica
from penstock.control.replica import Replica
from penstock.control.request import Request, Sampling
from penstock.control.step import Finish, Step, StepResult

BATCHES = (8, 64, 256, 1024)
WARM_UP, STEPS = 100, 600
PROMPT_TOKENS = 24


def request(number: int, max_tokens: int) -> Request:
    # Lengths differ, so that block boundaries spread over the steps as they do in real traffic.
    prompt = tuple((number * 31 + position) % 1000 for position in range(PROMPT_TOKENS - number % 16))
    return Request(id=str(number), prompt=prompt, max_tokens=max_tokens, sampling=Sampling(temperature=0.0))


class Ends:
    """The executor's side of a step with nothing computed: it only knows when each sequence reaches max_tokens."""

    def __init__(self) -> None:
        self.clock = 0
        self.due: dict[int, list[str]] = {}
        self.asked: dict[str, int] = {}

    def result(self, step: Step) -> StepResult:
        if step.decoding:
            self.clock += 1
        result = StepResult(step.number)
        for chunk in step.chunks:
            if chunk.last:
                self.due.setdefault(self.clock + self.asked.pop(chunk.id) - 1, []).append(chunk.id)
        for request_id in self.due.pop(self.clock, ()):
            result.finished[request_id] = Finish("length")
        return result


@dataclass
class Load:
    """One replica at a full batch, stepped one step at a time so that all sizes are measured in turn."""

    batch: int
    churn: bool
    plans: list[float] = field(default_factory=list)
    commits: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        batch = self.batch
        self.replica = build_replica(
            blocks=batch * (PROMPT_TOKENS + 2 * (WARM_UP + STEPS)) // 16, max_sequence_tokens=4096, watermark=0.0,
            token_budget=PROMPT_TOKENS * (batch + 2), max_seqs=batch + 2,
        )  # fmt: skip
        self.ends, self.numbers = Ends(), count()
        for place in range(batch):
            # With churn the first batch ends one by one, and each is followed by one that lives `batch` steps.
            self.submit(place + 2 if self.churn else 2 * (WARM_UP + STEPS))

    def submit(self, max_tokens: int) -> None:
        made = request(next(self.numbers), max_tokens)
        self.ends.asked[made.id] = max_tokens
        self.replica.submit(made, 0.0)

    def step(self, measured: bool) -> None:
        if self.churn:
            self.submit(self.batch)
        begin = time.perf_counter_ns()
        step = self.replica.plan(0.0)
        planned = time.perf_counter_ns()
        assert step is not None
        result = self.ends.result(step)
        ready = time.perf_counter_ns()
        self.replica.commit(step, result, 0.0)
        done = time.perf_counter_ns()
        if measured:
            self.plans.append((planned - begin) / 1e3)
            self.commits.append((done - ready) / 1e3)

    def figures(self) -> dict[str, float]:
        """Medians in microseconds, and the plan's 99th percentile."""
        return {
            "plan_us": statistics.median(self.plans), "plan_p99_us": statistics.quantiles(self.plans, n=100)[98],
            "commit_us": statistics.median(self.commits),
        }  # fmt: skip


def planning(churn: bool) -> dict[int, dict[str, float]]:
    """Batch to figures. The sizes take turns (A B C D, A B C D, ...), so that drift hits all alike."""
    loads = [Load(batch, churn) for batch in BATCHES]
    for number in range(WARM_UP + STEPS):
        for load in loads:
            load.step(measured=number >= WARM_UP)
    return {load.batch: load.figures() for load in loads}


def real_step_ms(batch: int) -> float:
    """Median time of the engine's decode step at this batch, model in the box, fp32, about 100 tokens of context."""
    from penstock.catalog import resolve_model
    from penstock.engine.engine import Engine

    output = 60
    blocks = batch * -(-(PROMPT_TOKENS + output) // 16)
    engine = Engine.load(resolve_model("millrace"), blocks=blocks, block_tokens=16, max_seqs=batch)
    replica: Replica = build_replica(
        blocks=blocks, max_sequence_tokens=2048, watermark=0.0, token_budget=8192, max_seqs=batch, memory="paged"
    )
    for number in range(batch):
        made = request(number, output)
        engine.add(made)
        replica.submit(made, 0.0)
    times = []
    while (step := replica.plan(0.0)) is not None:
        result = engine.run(step)
        replica.commit(step, result, 0.0)
        if step.decoding == batch:
            times.append(result.seconds * 1e3)
    engine.close()
    return statistics.median(times)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--no-engine", action="store_true", help="control alone, no torch")
    arguments.add_argument("--json", action="store_true", help="only the JSON line")
    chosen = arguments.parse_args()
    rows = []
    all_steady, all_churn = planning(churn=False), planning(churn=True)
    for batch in BATCHES:
        steady, churn = all_steady[batch], all_churn[batch]
        step_ms = None if chosen.no_engine else real_step_ms(batch)
        share = None if step_ms is None else (churn["plan_us"] + churn["commit_us"]) / (step_ms * 1e3)
        rows.append({"batch": batch, "steady": steady, "churn": churn, "real_step_ms": step_ms, "share": share})
    flatness = {
        kind: max(row[kind]["plan_us"] for row in rows) / min(row[kind]["plan_us"] for row in rows)  # type: ignore[index]
        for kind in ("steady", "churn")
    }
    if not chosen.json:
        table = Table("batch", "steady plan us", "p99", "churn plan us", "p99", "commit us", "real step ms", "share",
                      title="planning one step")  # fmt: skip
        for row in rows:
            steady, churn = row["steady"], row["churn"]
            assert isinstance(steady, dict)
            assert isinstance(churn, dict)
            real = (f"{row['real_step_ms']:.2f}", f"{row['share']:.3%}") if row["share"] is not None else ("-", "-")
            table.add_row(
                str(row["batch"]), f"{steady['plan_us']:.1f}", f"{steady['plan_p99_us']:.1f}",
                f"{churn['plan_us']:.1f}", f"{churn['plan_p99_us']:.1f}", f"{churn['commit_us']:.1f}", *real,
            )  # fmt: skip
        console = Console()
        console.print(table)
        console.print(f"largest / smallest plan time: steady {flatness['steady']:.2f}, churn {flatness['churn']:.2f}")
    print(json.dumps({"rows": rows, "flatness": flatness, "python": platform.python_version(),
                      "machine": platform.machine()}))  # fmt: skip
    if max(flatness.values()) > 2.0:
        print("planning is not flat within 2x", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()

"""The twin against 5,221 measured end-to-end points on H100 to GB300 under vLLM, SGLang and TensorRT-LLM.

Each row is simulated as it was measured: a closed loop of its concurrency over its engine's scheduler (or two pools of
workers, where prefill and decode are apart), with operator prices of its GPU (penstock.twin.measured). Eight constants
per engine and system (silicon_fit.py) are fitted on the training half of the configurations and scored on the other: no
configuration is in both, and each model is in each where it has two. Beside it, with `--peer-python`, AIConfigurator's
own estimate of aggregated rows among them.

    .venv/bin/python benchmarks/silicon.py                                   # all rows; an hour of CPU
    .venv/bin/python benchmarks/silicon.py --sample 300 --peer-python PATH   # an even subset, with the peer
    .venv/bin/python benchmarks/silicon.py --backends vllm --dump vllm.json  # in pieces; --pieces shows them together

Predicted before the first run: TTFT 20 %, TPOT 10 % (medians), the worst where settings are not stated. What was found
is in benchmarks/RESULTS.md. The last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from silicon_fit import START, fit, spread_out, training_sample
from silicon_knee import knee_errors
from silicon_loop import Costs
from silicon_model import InvalidDeployment, Outcome, simulate, system_spec
from silicon_rows import Point, contradicted, needs_more_than_peak, read_points, shape_of, test_half

from penstock.catalog.demand import matrix_flop
from penstock.twin.measured.database import installed_folder

Pair = tuple[Point, float, float]
"""A row with a predicted TTFT and TPOT."""


def main() -> None:
    """Fit, simulate, compare, print."""
    options = _options()
    file = options.rows or installed_folder().parent / "silicon_sample.csv"
    points, left = read_points(Path(file))
    unclear = contradicted(points) | {point.id for point in points if _beyond_peak(point)}
    by_id = {point.id: point for point in points}
    if options.pieces:
        found = [json.loads(Path(piece).read_text()) for piece in options.pieces]
        piece = {key: [row for one in found for row in one[key]] for key in ("ours", "peer")}
        constants = {name: costs for one in found for name, costs in one["constants"].items()}
        wall_s, skipped = sum(one["wall_s"] for one in found), sum(one["skipped"] for one in found)
        ours, theirs = ([(by_id[row[0]], *row[1:]) for row in piece[key]] for key in ("ours", "peer"))
    else:
        began = time.perf_counter()
        ours, theirs, constants, skipped = _measure(options, points, unclear)
        wall_s = time.perf_counter() - began
    if options.dump:
        plain = {
            key: [(point.id, ttft, tpot) for point, ttft, tpot in pairs]
            for key, pairs in (("ours", ours), ("peer", theirs))
        }
        piece = {**plain, "constants": constants, "skipped": skipped, "wall_s": round(wall_s, 1)}
        Path(options.dump).write_text(json.dumps(piece))
    left["weights do not fit the stated devices"] = skipped
    _show(ours, theirs, unclear, left, constants, options.seed)
    clear = [pair for pair in ours if pair[0].id not in unclear]
    same = {pair[0].id for pair in theirs}
    print(json.dumps({
        "seed": options.seed, "wall_s": round(wall_s, 1), "rows": len(ours),
        "all": _errors(ours), "clear": _errors(clear),
        "peer": _errors(theirs), "ours_on_peer_rows": _errors([pair for pair in ours if pair[0].id in same]),
        "knee": knee_errors(clear), "left_out": left, "constants": constants,
    }))  # fmt: skip


def _measure(
    options: argparse.Namespace, points: list[Point], unclear: set[str]
) -> tuple[list[Pair], list[Pair], dict[str, dict[str, float]], int]:
    """Predicted rows of the test half, the peer's, the fitted constants, and how many rows do not fit in memory."""
    if options.sample:
        points = spread_out(points, options.sample)
    scored = test_half(points, options.seed)
    test = [point for point in points if point.id in scored]
    asked = spread_out([point for point in test if point.decode is None], options.peer_rows)
    if options.systems:
        points, asked = (
            [point for point in some if point.system in options.systems.split(",")] for some in (points, asked)
        )
    backends = options.backends.split(",") if options.backends else sorted({point.backend for point in points})
    ours: list[Pair] = []
    constants = {}
    skipped = 0
    peer = None
    if options.peer_python:
        peer = _start_peer(options.peer_python, [point for point in asked if point.backend in backends])
    with Workers(options.processes) as spread:
        for backend in backends:
            mine = [point for point in points if point.backend == backend]
            train = [point for point in mine if point.id not in scored and point.id not in unclear]
            costs = fit(training_sample(train, options.fit_rows), spread)
            ask = [(point, costs.get(point.system, START)) for point in mine if point.id in scored]
            for point, outcome in spread(_outcome, ask):
                if outcome is None:
                    skipped += 1
                else:
                    ours.append((point, outcome.ttft, outcome.tpot))
            constants.update({f"{backend}/{system}": asdict(found) for system, found in costs.items()})
            print(f"{backend}: {len(ask)} rows of the test half", file=sys.stderr, flush=True)
    ours.sort(key=lambda pair: pair[0].id)
    return ours, _peer_pairs(peer, {point.id: point for point in test}) if peer else [], constants, skipped


class Workers:
    """Processes that keep what they have read: all rows of one system go to the same one, large systems first."""

    def __init__(self, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pools = [ProcessPoolExecutor(1, mp_context=context) for _ in range(count)]
        self._given: dict[str, int] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in self._pools:
            pool.shutdown(cancel_futures=True)

    def __call__(self, function: Callable[..., Any], arguments: Iterable[tuple[Point, Costs]]) -> list[Any]:
        """Results in the order of the arguments."""
        asked = list(arguments)
        sizes = Counter(point.system for point, _ in asked)
        loads = [sum(sizes[name] for name, mine in self._given.items() if mine == i) for i in range(len(self._pools))]
        for system, size in sizes.most_common():
            if system not in self._given:
                self._given[system] = loads.index(min(loads))
                loads[self._given[system]] += size
        running = [self._pools[self._given[one[0].system]].submit(function, *one) for one in asked]
        return [each.result() for each in running]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rows", help="silicon_sample.csv[.gz]; default: that of aiconfigurator-core")
    parser.add_argument("--sample", type=int, default=0, help="an even subset of so many rows; 0: all")
    parser.add_argument("--seed", type=int, default=1, help="of the split into halves")
    parser.add_argument("--fit-rows", type=int, default=40, help="training rows used of each engine on each system")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--peer-python", help="interpreter with the package aiconfigurator, for its own estimates")
    parser.add_argument(
        "--peer-rows", type=int, default=240, help="an even subset of aggregated test rows for the peer"
    )
    parser.add_argument("--backends", help="only these, with commas between them; all if left out")
    parser.add_argument("--systems", help="only these, with commas between them; all if left out")
    parser.add_argument("--dump", help="write what was predicted here, as JSON, for --pieces")
    parser.add_argument("--pieces", nargs="+", help="files of --dump to show together; nothing is simulated")
    return parser.parse_args()


def _outcome(point: Point, costs: Costs) -> tuple[Point, Outcome | None]:
    try:
        return point, simulate(point, costs)
    except InvalidDeployment:
        return point, None


def _beyond_peak(point: Point) -> bool:
    if point.decode is not None:
        return False
    gpu = system_spec(point.system)["gpu"]
    narrow = {"fp8": "fp8_tc_flops", "fp8_block": "fp8_tc_flops", "nvfp4": "fp4_tc_flops"}
    peak = gpu.get(narrow.get(point.precision.experts, "bfloat16_tc_flops")) or gpu["bfloat16_tc_flops"]
    return needs_more_than_peak(point, peak, matrix_flop(shape_of(point.model), head=False))


# -- the peer ---------------------------------------------------------------------------------------------------------


def _start_peer(python: str, points: list[Point]) -> subprocess.Popen[str]:
    """Its process, with all rows already on its way in."""
    process = subprocess.Popen(
        [python, str(Path(__file__).parent / "silicon_peer.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    for point in points:
        layout = point.pool.layout
        products, experts = point.quant
        ask = {
            "model_path": point.model, "system_name": point.system, "backend_name": point.backend, "isl": point.prompt,
            "osl": point.output, "batch_size": max(1, point.concurrency // layout.attention_dp),
            "tp_size": layout.tensor_parallel, "pp_size": layout.pipeline_parallel,
            "attention_dp_size": layout.attention_dp, "moe_tp_size": layout.moe_tensor_parallel,
            "moe_ep_size": layout.expert_parallel, "gemm_quant_mode": products or "bfloat16",
            "moe_quant_mode": "w4a16_mxfp4" if "gpt-oss" in point.model else experts or "bfloat16",
            "kvcache_quant_mode": "fp8" if point.precision.kv == "fp8" else "bfloat16",
        }  # fmt: skip
        process.stdin.write(json.dumps({"id": point.id, "ask": ask}) + "\n")
    process.stdin.close()
    return process


def _peer_pairs(process: subprocess.Popen[str], points: dict[str, Point]) -> list[Pair]:
    assert process.stdout is not None
    pairs, refused = [], 0
    for line in process.stdout:
        answer = json.loads(line)
        if "error" in answer:
            refused += 1
        else:
            pairs.append((points[answer["id"]], answer["ttft"], answer["tpot"]))
    process.wait()
    print(f"the peer answered {len(pairs)} rows and refused {refused}", file=sys.stderr)
    return pairs


# -- showing ----------------------------------------------------------------------------------------------------------


def _errors(pairs: Iterable[Pair]) -> dict[str, float | int]:
    """Absolute percentage errors, median and mean, in per cent."""
    pairs = list(pairs)
    if not pairs:
        return {"rows": 0}
    ttft = [100 * abs(pair[1] / pair[0].ttft - 1) for pair in pairs]
    tpot = [100 * abs(pair[2] / pair[0].tpot - 1) for pair in pairs]
    return {
        "rows": len(pairs),
        "ttft_median": round(statistics.median(ttft), 1), "ttft_mean": round(statistics.fmean(ttft), 1),
        "tpot_median": round(statistics.median(tpot), 1), "tpot_mean": round(statistics.fmean(tpot), 1),
    }  # fmt: skip


def _show(
    ours: list[Pair], theirs: list[Pair], unclear: set[str], left: dict[str, int],
    constants: dict[str, dict[str, float]], seed: int,
) -> None:  # fmt: skip
    print(f"split by configuration, seed {seed}; scored on the half that was not fitted. Errors in per cent.\n")
    print("left out: " + "; ".join(f"{count} {why}" for why, count in sorted(left.items()) if count) + "\n")
    same = {pair[0].id for pair in theirs}
    clear = [pair for pair in ours if pair[0].id not in unclear]
    print(f"{'':42s}{'rows':>6s}{'TTFT median':>13s}{'mean':>8s}{'TPOT median':>13s}{'mean':>8s}")
    _line("all", ours)
    _line("those that nothing contradicts", clear)
    for title, key in (
        ("system", lambda point: point.system), ("engine", lambda point: point.backend),
        ("mode", lambda point: point.mode), ("load", lambda point: point.band),
        ("model", lambda point: point.model.split("/")[-1]),
        ("engine and system", lambda point: f"{point.backend} {point.system}"),
    ):  # fmt: skip
        print(f"by {title}")
        _by(clear, key)
    knee = knee_errors(clear)
    print(f"knee of saturation: {knee.get('median', '-')} % off in the median of {knee['ladders']} ladders of loads")
    if theirs:
        print("\nthe same rows, both")
        _line("AIConfigurator, its estimate", theirs)
        _line("this twin", [pair for pair in ours if pair[0].id in same])
        clear_same = [pair for pair in theirs if pair[0].id not in unclear]
        _line("AIConfigurator, uncontradicted rows", clear_same)
        _line("this twin, uncontradicted rows", [pair for pair in clear if pair[0].id in same])
        for backend in sorted({pair[0].backend for pair in theirs}):
            _line(f"AIConfigurator, {backend}", [pair for pair in clear_same if pair[0].backend == backend])
            _line(f"this twin, {backend}", [p for p in clear if p[0].id in same and p[0].backend == backend])
    print("\nconstants")
    for name, costs in sorted(constants.items()):
        print(
            f"  {name:20s} kernels x{costs['device']:.2f}, with prompts x{costs['prompt']:.2f}"
            f"  step {costs['step_s'] * 1e3:.2f} ms  launch {costs['launch_s'] * 1e6:.1f} us"
            f"  sequence {costs['request_s'] * 1e6:.0f} us  front {costs['front_s'] * 1e3:.0f} ms"
            f"  streaming {costs['stream_s'] * 1e6:.0f} us"
            f"  reading {costs['read_s'] * 1e6:.1f} us"
        )  # fmt: skip


def _by(pairs: list[Pair], key: Callable[[Point], str]) -> None:
    for name in sorted({key(pair[0]) for pair in pairs}):
        _line(name, [pair for pair in pairs if key(pair[0]) == name])


def _line(name: str, pairs: list[Pair]) -> None:
    found = _errors(pairs)
    if found["rows"]:
        print(
            f"  {name:40s}{found['rows']:6d}{found['ttft_median']:13.1f}{found['ttft_mean']:8.1f}"
            f"{found['tpot_median']:13.1f}{found['tpot_mean']:8.1f}"
        )


if __name__ == "__main__":
    main()

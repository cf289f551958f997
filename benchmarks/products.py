"""Matrix products of packed weights: rows x the shapes of three Llamas, in each format, beside torch's plain linear.

A product of T rows with [O, I] is 2 T O I FLOP and reads the weights once. Few rows are bound by memory (what a plain
sum over a large array reads per second in this run), many by the multipliers: the peak is the best rate of torch's
float32 product of two large matrices in this run, and VNNI's is four times that. Every matrix is taken from a ring
larger than the last cache, as in a model. Contestants take turns; each figure is the best of its repeats, for other
work on the machine only ever adds time.
Prediction, written before the first run: float32 0.9 of the peak from 16 rows on (torch 0.3 to 0.6 below 128); int8
3 times the peak from 64 rows on; one row at 0.9 of the memory's speed in every format.

    python benchmarks/products.py [--models S M L] [--rows 1 64]

Last figures: RESULTS.md. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from time import perf_counter

import torch
from torch import Tensor
from torch.nn import functional

from penstock.engine.weights import Weight
from penstock.engine.weights.pack import packing

SHAPES = {
    "S": {"qkv": (640, 384), "out": (384, 384), "gate_up": (2048, 384), "down": (384, 1024), "head": (16000, 384)},
    "M": {"qkv": (1280, 768), "out": (768, 768), "gate_up": (4096, 768), "down": (768, 2048), "head": (16000, 768)},
    "L": {
        "qkv": (2560, 2048), "out": (2048, 2048), "gate_up": (11264, 2048), "down": (2048, 5632),
        "head": (32000, 2048),
    },
}  # fmt: skip
"""Outputs and inputs."""
ROWS = (1, 4, 16, 64, 256, 1024)
FORMS = ("float32", "float32_compressed", "bfloat16", "int8", "int8_weights", "int4")
RING_BYTES = 64 << 20
MOST_MATRICES = 24


def best_seconds(contestants: dict[str, Callable[[], object]], budget_s: float) -> dict[str, float]:
    """Of each, taking turns until the budget is spent; three turns at least."""
    best, started, turns = dict.fromkeys(contestants, float("inf")), perf_counter(), 0
    while turns < 3 or perf_counter() - started < budget_s:
        for name, run in contestants.items():
            before = perf_counter()
            run()
            best[name] = min(best[name], perf_counter() - before)
        turns += 1
    return best


def ring(call: Callable[[int], object], count: int) -> Callable[[], object]:
    """Each call takes the next matrix."""
    turn = [0]

    def run() -> object:
        turn[0] = (turn[0] + 1) % count
        return call(turn[0])

    return run


def limits(budget_s: float) -> tuple[float, float]:
    """FLOP/s of the best float32 product, and bytes/s read."""
    a, big = torch.randn(1536, 1536), torch.ones(32 << 20)
    best = best_seconds({"product": lambda: a @ a, "read": lambda: big.sum()}, budget_s)
    return 2 * 1536**3 / best["product"], big.nbytes / best["read"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=["M"], choices=list(SHAPES))
    parser.add_argument("--matrices", nargs="*", default=["qkv", "gate_up", "down"])
    parser.add_argument("--rows", nargs="*", type=int, default=list(ROWS))
    parser.add_argument("--forms", nargs="*", default=list(FORMS), choices=FORMS)
    parser.add_argument("--seconds", type=float, default=0.5, help="for each shape and number of rows")
    options = parser.parse_args()
    peak, bandwidth = limits(2.0)
    print(f"{torch.get_num_threads()} threads: {peak / 1e9:.0f} GFLOP/s float32, {bandwidth / 1e9:.1f} GB/s read")
    print(f"{'':12} {'rows':>5} {'':18} {'GFLOP/s':>8} {'of peak':>8} {'GB/s':>6} {'of read':>8} {'x torch':>8}")
    found = []
    with torch.inference_mode():
        for model, matrix in ((m, x) for m in options.models for x in options.matrices):
            outputs, inputs = SHAPES[model][matrix]
            count = max(1, min(MOST_MATRICES, RING_BYTES // (outputs * inputs)))
            plain = [torch.randn(outputs, inputs) * inputs**-0.5 for _ in range(count)]
            packed: dict[str, list[Weight]] = {}
            for form in options.forms:
                pack = packing(form, torch.device("cpu"))
                assert pack is not None
                dtype = torch.bfloat16 if form == "bfloat16" else torch.float32
                packed[form] = [
                    one for one in (pack(weight.to(dtype)) for weight in plain) if not isinstance(one, Tensor)
                ]
            for rows in options.rows:
                x = torch.randn(rows, inputs)
                contestants = {"torch": ring(lambda i, x=x, plain=plain: functional.linear(x, plain[i]), count)}
                for form, ones in packed.items():
                    y = x.bfloat16() if form == "bfloat16" else x
                    contestants[form] = ring(lambda i, y=y, ones=ones: ones[i].product(y, None), count)
                for name, seconds in best_seconds(contestants, options.seconds).items():
                    if name == "torch":
                        torch_s, size = seconds, plain[0].nbytes
                    else:
                        size = packed[name][0].nbytes
                    row = {
                        "model": model, "matrix": matrix, "rows": rows, "form": name, "seconds": seconds,
                        "flop_per_s": 2 * rows * outputs * inputs / seconds, "bytes_per_s": size / seconds,
                        "times_torch": torch_s / seconds,
                    }  # fmt: skip
                    found.append(row)
                    print(
                        f"{model} {matrix:10} {rows:5} {name:18} {row['flop_per_s'] / 1e9:8.1f} "
                        f"{row['flop_per_s'] / peak:8.2f} {row['bytes_per_s'] / 1e9:6.1f} "
                        f"{row['bytes_per_s'] / bandwidth:8.2f} {row['times_torch']:8.2f}",
                        flush=True,
                    )
    print(json.dumps({"peak_flop_per_s": peak, "read_bytes_per_s": bandwidth, "rows": found}))


if __name__ == "__main__":
    main()

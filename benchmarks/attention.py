"""The CPU's attention kernel beside torch's on contiguous tensors and beside memory; and a common prefix beside none.

    make bench-attention

One layer, float32, keys and values in scattered blocks of 16. M: 12 query heads and 4 KV heads of 64; L: 32 and 4;
H128: 32 and 8 of 128. Torch gets the same numbers of heads and tokens in tensors of its own, without blocks (grouped
heads as rows in a decode, which is how it is fastest). CPU time of one thread, the contestants in turns, the fastest of
`--rounds`: other work on the machine only adds. "read" is torch's sum over as many bytes of keys and values.

The second table finds where a shared prefix pays: sequences x tokens in common, each with 32 of its own. Last: JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from time import thread_time

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from penstock.engine.ops.kernels import Heads, Segments, SharedPrefixes
from penstock.engine.ops.native import load_native

BLOCK, OWN = 16, 32
MODELS = {"M": Heads(12, 4, 64), "L": Heads(32, 4, 64), "H128": Heads(32, 8, 128)}
CASES = [(1, 1024, 1024), (4, 256, 256), (64, 320, 1), (1, 320, 1), (1, 4096, 1), (16, 1088, 1)]
"""Sequences, tokens of each, rows of each in this step."""


def fastest(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Milliseconds of each call's fastest run, taken in turns."""
    best = dict.fromkeys(calls, float("inf"))
    for number in range(rounds + 1):
        for name, call in calls.items():
            began = thread_time()
            call()
            if number:
                best[name] = min(best[name], 1e3 * (thread_time() - began))
    return best


def lay_out(lengths: Sequence[int], rows: int, heads: Heads, shared: int) -> tuple[Tensor, Tensor, Segments]:
    """qkv, pool and segments of sequences whose first `shared` tokens are in the same blocks."""
    stem = shared // BLOCK
    own = [-(-length // BLOCK) - stem for length in lengths]
    blocks = stem + sum(own)
    order = torch.randperm(blocks, dtype=torch.int32)
    tables = torch.zeros(len(lengths), stem + max(own), dtype=torch.int32)
    tables[:, :stem] = order[:stem]
    for number, mine in enumerate(order[stem:].split(own)):
        tables[number, stem : stem + len(mine)] = mine
    prefixes = None
    if stem:
        prefixes = SharedPrefixes(
            torch.tensor([0, len(lengths)], dtype=torch.int32),
            torch.arange(len(lengths), dtype=torch.int32),
            torch.tensor([stem], dtype=torch.int32),
        )
    segments = Segments(
        first_row=torch.arange(len(lengths) + 1, dtype=torch.int32) * rows,
        lengths=torch.tensor(lengths, dtype=torch.int32),
        table_rows=torch.arange(len(lengths), dtype=torch.int32),
        tables=tables,
        longest_rows=rows,
        prefixes=prefixes,
    )
    qkv = torch.randn(rows * len(lengths), (heads.query + 2 * heads.kv) * heads.width)
    return qkv, torch.randn(blocks, 1, 2, heads.kv, BLOCK, heads.width), segments


def beside_torch(heads: Heads, count: int, length: int, rows: int, rounds: int) -> dict[str, float]:
    """Milliseconds of ours, torch's and of reading; and of ours GFLOP/s and GB/s."""
    qkv, pool, segments = lay_out([length] * count, rows, heads, 0)
    kernels, scale = load_native(), heads.width**-0.5
    k, v = torch.randn(2, count, heads.kv, length, heads.width)
    q = torch.randn(count, heads.query, rows, heads.width)
    grouped = q.view(count, heads.kv, -1, heads.width) if rows == 1 else q
    got = fastest(
        {
            "ours": lambda: kernels.attention(qkv, heads, pool, 0, segments, scale, None),
            "torch": lambda: scaled_dot_product_attention(grouped, k, v, is_causal=rows > 1, enable_gqa=rows > 1),
            "read": lambda: (k.sum(), v.sum()),
        },
        rounds,
    )
    pairs = count * (rows * length - rows * (rows - 1) // 2)
    got["GFLOP/s"] = 4 * pairs * heads.query * heads.width / got["ours"] / 1e6
    got["GB/s"] = (k.nbytes + v.nbytes) / got["ours"] / 1e6
    return got


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    results: dict[str, object] = {}
    for name in arguments.models:
        for count, length, rows in CASES:
            got = beside_torch(MODELS[name], count, length, rows, arguments.rounds)
            results[f"{name} {count} x {length}, {rows} rows"] = got
            told = ", ".join(f"{key} {value:.2f}" for key, value in got.items())
            print(f"{name:5}{count:3} x {length:5}, {rows:4} rows: {told}", flush=True)
    heads, kernels = MODELS["M"], load_native()
    for shared in (64, 256, 1024):
        for count in (2, 3, 4, 8, 16, 64):
            qkv, pool, segments = lay_out([shared + OWN] * count, 1, heads, shared)
            alone = replace(segments, prefixes=None)
            got = fastest(
                {
                    "together": lambda: kernels.attention(qkv, heads, pool, 0, segments, 0.125, None),  # noqa: B023
                    "alone": lambda: kernels.attention(qkv, heads, pool, 0, alone, 0.125, None),  # noqa: B023
                },
                arguments.rounds,
            )
            results[f"shared {shared} x {count}"] = got
            ratio = got["alone"] / got["together"]
            print(
                f"M {count:3} share {shared:5}: together {got['together']:.3f}, alone {got['alone']:.3f}, {ratio:.2f}"
            )
    print(json.dumps(results))


if __name__ == "__main__":
    main()

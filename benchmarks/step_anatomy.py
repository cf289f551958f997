"""Where a step's time goes: matrix products, attention, the kernels around them, sampling and the host, each beside
its limit.

    make bench-step
    make bench-step FLAGS="--models M --steps decode-64 --json anatomy.json"

Random Llama checkpoints S (25 M parameters) and M (110 M), float32. Decode steps of 1, 16 and 64 sequences of about
300 tokens, a step that computes a prompt of 1,024, and decode steps of 64 sequences that share 1,024 tokens and have 48
of their own. The layers, one call, tell what their parts took; every other kernel call is timed by a wrapper, 0.3 us.
`host` is what is left of `Engine.run`: numpy, Python, and the start of that one call.

Limits, from what this process measures first: FLOP over the rate of one large product, bytes over the rate at which
memory is read, whichever is later. Bytes are weights for products, keys and values for attention (of a shared prefix
once), the logits for sampling, activations read and written for the rest (which lie in a cache, so that a kernel can be
faster than its limit). Each figure is the fastest of `--repeat` steps, part by part, since other work on the machine
only adds: barriers wait for a thread that other work has stopped, so that only a quiet machine tells parts apart.
Last line: JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import tempfile
from collections import defaultdict
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from penstock.control.request import Request, Sampling
from penstock.control.step import Admission, Chunk, Step
from penstock.engine.engine import Engine
from penstock.engine.loader import LoadedModel, load_model
from penstock.engine.ops.kernels import kernels_for
from penstock.engine.ops.layers import MATRICES
from penstock.engine.ops.layers import PARTS as LAYER_PARTS
from penstock.testing import tiny_checkpoint

SHAPES: dict[str, dict[str, int]] = {
    "S": {"hidden_size": 384, "num_hidden_layers": 8, "num_attention_heads": 6, "num_key_value_heads": 2,
          "intermediate_size": 1024, "vocab_size": 16000},
    "M": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "num_key_value_heads": 4,
          "intermediate_size": 2048, "vocab_size": 16000},
}  # fmt: skip
BLOCK, CONTEXT, PROMPT, SHARED, OWN = 16, 300, 1024, 1024, 48
STEPS = ("decode-1", "decode-16", "decode-64", "prefill-1024", "shared-64")
PARTS = ("products", "attention", "around", "sampling", "host")
_PART_OF = {"linear": "products", "attention": "attention"}


class Timed:
    """Kernels whose calls are timed where they are: seconds by part and by name."""

    def __init__(self, kernels: Any) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        for name in dir(kernels):
            if not name.startswith("_") and callable(getattr(kernels, name)):
                setattr(kernels, name, self.timed(name, getattr(kernels, name)))

    def timed(self, name: str, call: Any) -> Any:
        """`call`, its time counted under `name`."""
        seconds = self.seconds

        def wrapper(*arguments: Any, **options: Any) -> Any:
            began = perf_counter()
            try:
                return call(*arguments, **options)
            finally:
                seconds[name] += perf_counter() - began

        return wrapper


def best(call: Any, times: int = 8) -> float:
    """Seconds of the fastest of some calls."""
    call()
    seconds = []
    for _ in range(times):
        began = perf_counter()
        call()
        seconds.append(perf_counter() - began)
    return min(seconds)


def machine() -> tuple[float, float]:
    """FLOP/s of a float32 product of 2,048 cubed, and bytes/s read from memory."""
    a, b, c = (torch.randn(2048, 2048) for _ in range(3))
    flop_per_s = 2 * 2048**3 / best(lambda: torch.mm(a, b, out=c))
    wide = torch.ones(64 << 20)
    return flop_per_s, wide.nbytes / min(best(wide.sum), best(wide.max))


def limits(shape: dict[str, int], rows: int, logits: int, pairs: int, tokens: int, rates: tuple[float, float]) -> Any:
    """Seconds of each part of one step at the machine's rates.

    rows of the step, rows of logits, (row, key) pairs of attention, tokens whose keys and values are read.
    """
    flop_per_s, bytes_per_s = rates
    d, layers, heads, kv = (shape[f"{n}"] for n in ("hidden_size", "num_hidden_layers", "num_attention_heads",
                                                    "num_key_value_heads"))  # fmt: skip
    inner, vocabulary, head = shape["intermediate_size"], shape["vocab_size"], d // heads
    queries, keys = heads * head, kv * head
    layer = d * (queries + 2 * keys) + queries * d + 3 * d * inner

    def later(flop: float, size: float) -> float:
        return max(flop / flop_per_s, size / bytes_per_s)

    around = 4 * rows * layers * (2 * 4 * d + 2 * (queries + 2 * keys) + 3 * inner)
    return {
        "products": layers * later(2 * rows * layer, 4 * layer)
        + later(2 * logits * d * vocabulary, 4 * d * vocabulary),
        "attention": layers * later(4 * pairs * queries, 8 * tokens * keys),
        "around": around / bytes_per_s,
        "sampling": 4 * logits * vocabulary / bytes_per_s,
        "host": 0.0,
    }


def request(name: str, prompt: list[int], tokens: int) -> Request:
    """A greedy one."""
    return Request(id=name, prompt=tuple(prompt), max_tokens=tokens, sampling=Sampling(temperature=0.0))


class Bench:
    """One engine, and the steps it is asked for."""

    def __init__(self, model: LoadedModel, repeat: int) -> None:
        kernels: Any = kernels_for(model.device)
        self.kernels = Timed(kernels)
        whole = getattr(model.model, "whole", lambda kernels: None)(kernels)
        self.layers = (ctypes.c_double * len(LAYER_PARTS))()
        if whole is not None:
            whole.seconds = self.layers
        self.repeat, self.number = repeat, 0
        self.vocabulary = model.architecture.vocab_size
        self.engine = Engine(
            model, blocks=64 * -(-(CONTEXT + 64) // BLOCK) + 256, block_tokens=BLOCK, max_seqs=65,
            kernels=kernels,
        )  # fmt: skip
        sampler = self.engine._sampler
        sampler.sample = self.kernels.timed("sample", sampler.sample)  # type: ignore[method-assign]

    def run(self, **fields: Any) -> dict[str, float]:
        """One step: seconds by part, by kernel, and of the whole."""
        self.number += 1
        self.kernels.seconds.clear()
        ctypes.memset(self.layers, 0, ctypes.sizeof(self.layers))
        began = perf_counter()
        self.engine.run(Step(self.number, **fields))
        whole = perf_counter() - began
        seconds = dict(self.kernels.seconds)
        told = {"products": 0.0, "attention": 0.0, "around": 0.0, "sampling": seconds.pop("sample", 0.0)}
        for name, spent in seconds.items():
            told[_PART_OF.get(name, "around")] += spent
        for name, spent in zip(LAYER_PARTS, self.layers, strict=True):
            told["products" if name in MATRICES else "attention" if name == "attention" else "around"] += spent
        return told | {"host": whole - sum(told.values()), "step": whole}

    def decode(self, batch: int, shared: int, own: int) -> list[dict[str, float]]:
        """Decode steps of `batch` sequences, `shared` tokens of one prefix and about `own` of each."""
        prefix = torch.randint(2, self.vocabulary, (shared,)).tolist()
        per = -(-(own + self.repeat + 2) // BLOCK)
        stem = tuple(range(shared // BLOCK))
        names = [f"d{n}" for n in range(batch)]
        for n, name in enumerate(names):
            prompt = prefix + torch.randint(2, self.vocabulary, (own - self.repeat // 2,)).tolist()
            self.engine.add(request(name, prompt, 4096 - len(prompt)))
            blocks = stem + tuple(range(len(stem) + n * per, len(stem) + (n + 1) * per))
            cached = 0 if n == 0 else shared
            self.run(admit=[Admission(name, blocks, cached)], chunks=[Chunk(name, cached, len(prompt) - cached, True)])
        self.run(join=names, decoding=batch)
        seen = [self.run(decoding=batch) for _ in range(self.repeat)]
        self.run(release=names)
        return seen

    def prefill(self) -> list[dict[str, float]]:
        """Steps that each compute one prompt of PROMPT tokens."""
        seen = []
        for n in range(max(3, self.repeat // 8) + 1):
            self.engine.add(request(f"p{n}", torch.randint(2, self.vocabulary, (PROMPT,)).tolist(), 8))
            blocks = tuple(range(PROMPT // BLOCK + 1))
            seen.append(self.run(admit=[Admission(f"p{n}", blocks, 0)], chunks=[Chunk(f"p{n}", 0, PROMPT, True)]))
            self.run(release=[f"p{n}"])
        return seen[1:]


def measure(bench: Bench, shape: dict[str, int], step: str, rates: tuple[float, float]) -> dict[str, Any]:
    """Fastest seconds and limit of each part, and of the whole step."""
    kind, count = step.split("-")
    batch = int(count)
    if kind == "prefill":
        seen = bench.prefill()
        bound = limits(shape, PROMPT, 1, PROMPT * (PROMPT + 1) // 2, PROMPT, rates)
    elif kind == "shared":
        seen = bench.decode(batch, SHARED, OWN)
        bound = limits(shape, batch, batch, batch * (SHARED + OWN), SHARED + batch * OWN, rates)
    else:
        seen = bench.decode(batch, 0, CONTEXT)
        bound = limits(shape, batch, batch, batch * CONTEXT, batch * CONTEXT, rates)
    parts = {part: min(one[part] for one in seen) for part in PARTS}
    return {"step": min(one["step"] for one in seen), "parts": parts, "limits": bound}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--repeat", type=int, default=24, help="decode steps of each kind; prompts an eighth of it")
    parser.add_argument("--dtype", default="float32", help="as in a deployment file")
    parser.add_argument("--json", type=Path, help="write the last line there, too")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    rates = machine()
    print(f"{torch.get_num_threads()} threads, {rates[0] / 1e9:.0f} GFLOP/s, {rates[1] / 1e9:.1f} GB/s read")
    results: dict[str, Any] = {"flop_per_s": rates[0], "bytes_per_s": rates[1]}
    for name in arguments.models:
        shape = SHAPES[name]
        with tempfile.TemporaryDirectory() as folder:
            path = tiny_checkpoint("llama", Path(folder, name), std=0.02, max_position_embeddings=4096, **shape)
            bench = Bench(load_model(path, dtype=arguments.dtype), arguments.repeat)
        print(f"{name}: milliseconds (limit)")
        print(f"  {'step':14}{'whole':>16}" + "".join(f"{part:>18}" for part in PARTS))
        for step in arguments.steps:
            got = measure(bench, shape, step, rates)
            results[f"{name} {step}"] = got
            cells = [(got["step"], sum(got["limits"].values()))] + [(got["parts"][p], got["limits"][p]) for p in PARTS]
            print(f"  {step:14}" + "".join(f"{1e3 * a:>9.2f} ({1e3 * b:6.2f})" for a, b in cells), flush=True)
    line = json.dumps(results)
    if arguments.json:
        arguments.json.write_text(line)
    print(line)


if __name__ == "__main__":
    main()

"""The engine on a GPU: errors of the kernels, limits of the machine, Llama 3 8B of random weights, and a peer.

    python benchmarks/gpu_engine.py                          all parts, on CUDA
    python benchmarks/gpu_engine.py --device cpu --shape tiny    the same script where there is no GPU, to try it

Share of optimal is NanoFlow's (Zhu et al., OSDI 2025): tokens/s of prompts and output x 2 x parameters / the peak of a
large matrix product measured in the same run. Its figure to beat is 0.59 to 0.72 (8 x A100, several models). Every part
has a time budget and prints what it found; the last line of the output is JSON of everything.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gpu_kernels
import gpu_model
import torch
from gpu_serve import decode_ms, kv_blocks, serve

from penstock.engine.loader import LoadedModel
from penstock.engine.ops.kernels import Heads, Kernels, Segments, kernels_for
from penstock.engine.ops.portable import PortableKernels
from penstock.engine.ops.triton.kernels import Tiling, TritonKernels

PARTS = ("checks", "peaks", "kernels", "latency", "serve", "peer")


class PlacedPortable(PortableKernels):
    """Reads segments where a GPU does, so that graphs can be tried on a CPU."""

    def attention(
        self, qkv: torch.Tensor, heads: Heads, pool: torch.Tensor, layer: int, segments: Segments, scale: float,
        window: int | None, softcap: float | None = None,
    ) -> torch.Tensor:  # fmt: skip
        at = segments.placed
        assert at is not None
        here = Segments(at.first_row, at.lengths, at.table_rows, at.tables, at.longest_rows)
        return super().attention(qkv, heads, pool, layer, here, scale, window, softcap)


TILINGS = [
    Tiling(16, 64, 4, 3), Tiling(16, 64, 4, 4), Tiling(16, 64, 4, 5), Tiling(16, 64, 4, 7), Tiling(16, 32, 4, 5),
    Tiling(16, 32, 2, 5), Tiling(16, 128, 4, 3), Tiling(16, 128, 8, 5), Tiling(16, 64, 8, 5),
]  # fmt: skip
PREFILL_TILINGS = [
    Tiling(128, 64, 8, 3),
    Tiling(128, 64, 8, 5),
    Tiling(64, 64, 4, 5),
    Tiling(128, 128, 8, 5),
    Tiling(128, 64, 4, 3),
]


def show(values: dict[str, Any], indent: str = "  ") -> None:
    for name, value in values.items():
        print(
            f"{indent}{name:<58} {value:.4g}" if isinstance(value, float) else f"{indent}{name:<58} {value}", flush=True
        )


def kernel_figures(device: torch.device, small: bool, tune: bool) -> dict[str, float]:
    """Bandwidth of decodes by batch, block size and layout; the rest at a step's usual size."""
    kernels = TritonKernels(device)
    sizes = {"sequences": 4, "length": 40, "layers": 2} if small else {"sequences": 640, "length": 640, "layers": 8}
    found = {f"decode_gb_s {sizes['sequences']} x {sizes['length']}, blocks of {block}": gpu_kernels.decode_bandwidth(
        kernels, device, block_tokens=block, **sizes) for block in (16, 64)}  # fmt: skip
    found["decode_gb_s layer by layer, blocks of 16"] = gpu_kernels.decode_bandwidth(
        kernels, device, block_tokens=16, by_layer=True, **sizes
    )
    for sequences, length in [(2, 30)] if small else [(1, 8000), (8, 4000), (64, 1000), (256, 1000)]:
        found[f"decode_gb_s {sequences} x {length}, blocks of 16"] = gpu_kernels.decode_bandwidth(
            kernels, device, sequences=sequences, length=length, block_tokens=16, layers=sizes["layers"]
        )
    for chunks, rows in [(1, 20)] if small else [(4, 512), (1, 4096)]:
        found[f"prefill_tflops {chunks} x {rows}"] = gpu_kernels.prefill_rate(kernels, device, chunks=chunks, rows=rows)
    found |= gpu_kernels.prefix_figures(kernels, device, small)
    found |= gpu_kernels.row_bandwidths(kernels, device, 16 if small else 2048)
    if tune:
        for tiling in TILINGS:
            for block in (16, 64):
                found[f"decode_gb_s {tiling}, blocks of {block}"] = tried(
                    lambda block=block, tiling=tiling: gpu_kernels.decode_bandwidth(
                        kernels, device, block_tokens=block, tiling=tiling, **sizes)
                )  # fmt: skip
        for tiling in PREFILL_TILINGS:
            found[f"prefill_tflops {tiling}"] = tried(
                lambda tiling=tiling: gpu_kernels.prefill_rate(
                    kernels, device, chunks=4, rows=20 if small else 512, tiling=tiling)
            )  # fmt: skip
    return found


def compiled_ahead(device: torch.device, number: int, parts: int) -> dict[str, float]:
    """A part of the tilings, tried on little: processes that do this at the same time share Triton's cache."""
    kernels = TritonKernels(device)
    sequences = 640 if device.type == "cuda" else 2

    def decode(tiling: Tiling, block: int) -> float:
        return gpu_kernels.decode_bandwidth(
            kernels, device, sequences=sequences, length=9, block_tokens=block, layers=2, tiling=tiling
        )

    for tiling in TILINGS[number::parts]:
        for block in (16, 64):
            tried(lambda tiling=tiling, block=block: decode(tiling, block))
    for tiling in PREFILL_TILINGS[number::parts]:
        tried(lambda tiling=tiling: gpu_kernels.prefill_rate(kernels, device, chunks=2, rows=9, tiling=tiling))
    return {}


def tried(work: Callable[[], float]) -> float:
    """0 for what this GPU has not enough shared memory for."""
    try:
        return work()
    except Exception as error:  # noqa: BLE001 - Triton raises classes of its own, by version
        print(f"  not possible: {str(error)[:100]}", flush=True)
        return 0.0


def throughput(
    model: LoadedModel, kernels: Kernels, given: argparse.Namespace, lengths: str, peak: float, device: torch.device
) -> dict[str, Any]:
    """One workload, e.g. 512x256x2048x640x2048: prompt, output, requests, sequences at once, tokens of a step."""
    prompt, output, requests, max_seqs, budget = map(int, lengths.split("x"))
    blocks = kv_blocks(device, model, given.block_tokens, int(given.reserve_gb * 1e9))
    served = serve(
        model, kernels, requests=requests, prompt=prompt, output=output, budget=budget, max_seqs=max_seqs,
        block_tokens=given.block_tokens, blocks=blocks, deadline=time.perf_counter() + given.budget_s,
        profile_at=given.profile_at or None,
    )  # fmt: skip
    per_token = 2 * gpu_model.parameters(given.shape) / peak / 1e12 if peak else 0.0
    return {
        "kv_tokens": blocks * given.block_tokens, **asdict(served), "tokens_s": served.rate,
        "output_tokens_s": served.output_tokens / served.seconds, "share_of_optimal": served.rate * per_token,
        "steady_share_of_optimal": served.steady_rate * per_token,
    }  # fmt: skip


def latencies(model: LoadedModel, kernels: Kernels, block_tokens: int, small: bool) -> dict[str, float]:
    """Steps of decodes only, as one graph and launch by launch."""
    found = {}
    for batch, context in [(2, 20)] if small else [(1, 512), (16, 512), (64, 512), (256, 512)]:
        for graphs in (True, False):
            name = f"ms, {batch} x {context} tokens, " + ("graph" if graphs else "launched")
            found[name] = decode_ms(
                model, kernels, batch=batch, context=context, block_tokens=block_tokens, graphs=graphs
            )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", default="8b", choices=gpu_model.SHAPES)
    parser.add_argument("--dtype", default="bfloat16", help="bfloat16, fp8 or both as bfloat16,fp8")
    parser.add_argument("--workloads", default="512x256x2048x640x2048,1024x512x1024x320x1024")
    parser.add_argument("--peer-requests", type=int, default=128)
    parser.add_argument("--budget-s", type=float, default=80, help="of each workload")
    parser.add_argument("--peer-budget-s", type=float, default=60)
    parser.add_argument("--block-tokens", type=int, default=16)
    parser.add_argument("--reserve-gb", type=float, default=7.0, help="memory that KV leaves free")
    parser.add_argument("--profile-at", type=int, default=300, help="step at which six steps are profiled; 0: none")
    parser.add_argument("--sustain-s", type=float, default=2.0)
    parser.add_argument("--check-part", default="0/1", help="i/n: the i-th of n parts of the checks")
    parser.add_argument("--tune", action="store_true", help="other tilings of attention too")
    parser.add_argument("--out", default=os.environ.get("OUT", ""), help="directory for result.json")
    given = parser.parse_args()
    device, small = torch.device(given.device), given.shape == "tiny"
    if device.type == "cuda" and not torch.cuda.is_available():
        print("torch finds no CUDA device here; to try the script: --device cpu --shape tiny", file=sys.stderr)
        return 2
    torch.manual_seed(0)
    found: dict[str, Any] = {"machine": machine(device), "arguments": vars(given)}
    wanted = given.parts.split(",")
    interpreted = device.type == "cpu"

    def part(name: str, work: Callable[[], Any]) -> Any:
        """A part that fails says so and ends no other."""
        print(f"== {name}", flush=True)
        began = time.perf_counter()
        try:
            with torch.inference_mode():
                found[name] = work()
            show(found[name])
        except Exception as error:  # noqa: BLE001 - device time is short: go on with the next part
            traceback.print_exc()
            found[name] = {"error": f"{type(error).__name__}: {error}"[:500]}
        print(f"   {time.perf_counter() - began:.1f} s", flush=True)
        if given.out:
            Path(given.out, f"result-{os.getpid()}.json").write_text(json.dumps(found, default=str))
        return found[name]

    if "checks" in wanted:
        number, parts = map(int, given.check_part.split("/"))
        if given.tune:
            part("compile", lambda: compiled_ahead(device, number, parts))
        part("checks", lambda: gpu_kernels.checks(TritonKernels(device), device, small, number, parts))
    peak = 0.0
    if "peaks" in wanted or "serve" in wanted or "peer" in wanted:
        rows = 64 if small else 2048
        peak = part("peaks", lambda: gpu_kernels.peaks(given.shape, device, rows, given.sustain_s)).get(
            "cubed_tflops", 0
        )
    if "kernels" in wanted:
        part("kernels", lambda: kernel_figures(device, small, given.tune))
        free_memory(device)
    if "serve" in wanted or "latency" in wanted:
        kernels = PlacedPortable() if interpreted else kernels_for(device)
        for dtype in given.dtype.split(","):
            model = gpu_model.random_model(given.shape, torch.bfloat16, device)
            if dtype == "fp8":
                from penstock.engine.weights.fp8 import fp8

                with torch.inference_mode():
                    model.model.pack(fp8(device))
            if "latency" in wanted:
                part(f"{dtype} decode step", lambda m=model: latencies(m, kernels, given.block_tokens, small))
                free_memory(device)
            for lengths in given.workloads.split(",") if "serve" in wanted else []:
                part(f"{dtype} {lengths}", lambda m=model, w=lengths: throughput(m, kernels, given, w, peak, device))
                free_memory(device)
            del model
            free_memory(device)
    if "peer" in wanted:
        from gpu_peer import transformers_batching

        for lengths in given.workloads.split(","):
            prompt, output = map(int, lengths.split("x")[:2])
            part(
                f"transformers {prompt}x{output}",
                lambda p=prompt, o=output: transformers_batching(
                    given.shape, device, requests=given.peer_requests, prompt=p, output=o, peak=peak,
                    budget_s=given.peer_budget_s,
                ),
            )  # fmt: skip
            free_memory(device)
    print(json.dumps(found, default=str))
    return 0


def machine(device: torch.device) -> dict[str, Any]:
    import triton

    facts: dict[str, Any] = {"torch": torch.__version__, "triton": triton.__version__, "python": sys.version.split()[0]}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {"gpu": properties.name, "processors": properties.multi_processor_count,
                  "memory_gb": properties.total_memory / 1e9}  # fmt: skip
    return facts


def free_memory(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())

"""Requests through the real control plane and the engine on a GPU, and where the time of their steps goes."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch

from penstock.control.policy import build_replica
from penstock.control.request import Request, Sampling
from penstock.engine.device_engine import DeviceEngine
from penstock.engine.loader import LoadedModel
from penstock.engine.ops.kernels import Kernels
from penstock.runtime.local import Loop

KINDS = {
    "attention": ("attend", "merge"),
    "rows": ("add_rms_norm", "silu_mul", "rotate_and_store", "quantize_rows"),
    "products": ("nvjet", "gemm", "cutlass", "cublas", "wgmma", "gemv", "splitK", "matmul"),
}
"""Kinds of kernels by what their names hold; all others are `other`."""


@dataclass(slots=True)
class Served:
    """Times are seconds since the first plan, rates tokens/s of prompts and output together."""

    requests: int
    finished: int = 0
    seconds: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    steps: int = 0
    steady_rate: float = 0.0
    """Between the first end of a request and the last admission, when memory is full."""
    steady_share_of_time: float = 0.0
    preemptions: int = 0
    largest_batch: int = 0
    profile: dict[str, float] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        return (self.prompt_tokens + self.output_tokens) / self.seconds if self.seconds else 0.0


def kv_blocks(device: torch.device, model: LoadedModel, block_tokens: int, reserve_bytes: int) -> int:
    """Blocks for all memory that is free, but for `reserve_bytes`."""
    if device.type != "cuda":
        return 64
    free, _ = torch.cuda.mem_get_info(device)
    element = torch.finfo(model.dtype).bits // 8
    return int((free - reserve_bytes) // (model.architecture.kv_elements_per_token * element * block_tokens))


def serve(
    model: LoadedModel, kernels: Kernels, *, requests: int, prompt: int, output: int, budget: int, max_seqs: int,
    block_tokens: int, blocks: int, deadline: float, profile_at: int | None = None, profile_steps: int = 6,
) -> Served:  # fmt: skip
    """Run `requests` of the same lengths, all there at the start, or as far as time.perf_counter() < deadline."""
    draw = random.Random(1)
    vocabulary = model.architecture.vocab_size
    engine = DeviceEngine(model, blocks=blocks, block_tokens=block_tokens, max_seqs=max_seqs, kernels=kernels)
    replica = build_replica(
        blocks=blocks, block_tokens=block_tokens, max_sequence_tokens=engine.max_sequence_tokens, policy="sarathi",
        token_budget=budget, max_seqs=max_seqs,
    )  # fmt: skip
    loop = Loop(replica, engine, clock=time.perf_counter)
    for number in range(requests):
        loop.submit(
            Request(
                id=str(number), prompt=tuple(draw.randrange(vocabulary) for _ in range(prompt)), max_tokens=output,
                sampling=Sampling(temperature=0.0),
            )
        )  # fmt: skip
    engine.warm_up(longest=prompt + output)
    warm(loop, model, engine)
    served = Served(requests)
    marks: list[tuple[float, int]] = []
    admitted, first_end, last_admission = 0, None, None
    profiler: Any = None
    began = time.perf_counter()
    for turn in loop.run():
        now = time.perf_counter()
        step = turn.step
        served.steps += 1
        served.prompt_tokens += step.tokens - step.decoding
        served.output_tokens += len(turn.result.tokens)
        served.finished += len(turn.result.finished)
        served.largest_batch = max(served.largest_batch, step.decoding)
        marks.append((now - began, step.tokens))
        admitted += len(step.admit)
        if first_end is None and turn.result.finished:
            first_end = served.steps
        if last_admission is None and admitted >= requests:
            last_admission = served.steps
        if profile_at is not None and served.steps == profile_at:
            profiler = begin_profile()
        if profiler is not None and served.steps == (profile_at or 0) + profile_steps:
            served.profile = end_profile(profiler, profile_steps)
            profiler = None
        if now > deadline:
            break
    served.seconds = time.perf_counter() - began
    served.preemptions = replica.statistics().preemptions
    first, last = first_end or 0, last_admission or served.steps
    if last - first > 10:
        span = marks[last - 1][0] - marks[first - 1][0]
        served.steady_rate = sum(tokens for _, tokens in marks[first:last]) / span
        served.steady_share_of_time = span / served.seconds
    engine.close()
    return served


def decode_ms(
    model: LoadedModel, kernels: Kernels, *, batch: int, context: int, block_tokens: int, graphs: bool, steps: int = 40
) -> float:
    """Milliseconds of a step in which `batch` sequences of `context` tokens decode: the median of some."""
    tokens = context + steps + 8
    blocks = batch * -(-tokens // block_tokens) + 8
    engine = DeviceEngine(
        model, blocks=blocks, block_tokens=block_tokens, max_seqs=batch, kernels=kernels, graphs=graphs
    )
    replica = build_replica(
        blocks=blocks, block_tokens=block_tokens, max_sequence_tokens=min(engine.max_sequence_tokens, tokens),
        token_budget=8192, max_seqs=batch, watermark=0.0,
    )  # fmt: skip
    loop = Loop(replica, engine, clock=time.perf_counter)
    draw = random.Random(3)
    vocabulary = model.architecture.vocab_size
    for number in range(batch):
        prompt = tuple(draw.randrange(vocabulary) for _ in range(context))
        loop.submit(Request(id=str(number), prompt=prompt, max_tokens=steps + 4, sampling=Sampling(temperature=0.0)))
    if graphs:
        engine.warm_up(batch, longest=tokens)
    times, last = [], time.perf_counter()
    for turn in loop.run():
        now = time.perf_counter()
        if turn.step.decoding == batch and not turn.step.chunks:
            times.append(now - last)
        last = now
    engine.close()
    return sorted(times)[len(times) // 2] * 1e3


def warm(loop: Loop, model: LoadedModel, engine: DeviceEngine) -> None:
    """Compile what the first steps would compile: one short request beside the others is not counted."""
    other = DeviceEngine(
        model, blocks=64, block_tokens=engine._pool.block_tokens, max_seqs=4, kernels=engine._kernels, graphs=False
    )
    replica = build_replica(
        blocks=64, block_tokens=engine._pool.block_tokens, max_sequence_tokens=other.max_sequence_tokens,
        token_budget=128, max_seqs=4,
    )  # fmt: skip
    short = Loop(replica, other, clock=time.perf_counter)
    for number in range(3):
        short.submit(
            Request(
                id=f"w{number}", prompt=tuple(range(1, 90 + number)), max_tokens=6, sampling=Sampling(temperature=0.0)
            )
        )
    for _ in short.run():
        pass
    other.close()


def begin_profile() -> Any:
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities = [torch.profiler.ProfilerActivity.CUDA]
    profiler = torch.profiler.profile(activities=activities)
    profiler.__enter__()
    profiler.began = time.perf_counter()
    return profiler


def end_profile(profiler: Any, steps: int) -> dict[str, float]:
    """Milliseconds of a step by kind of kernel, the wall time, and what of it no kernel ran."""
    wall = (time.perf_counter() - profiler.began) / steps * 1e3
    profiler.__exit__(None, None, None)
    by_kind: dict[str, float] = defaultdict(float)
    names: dict[str, float] = defaultdict(float)
    first = last = None
    for event in profiler.events():
        took = getattr(event, "device_time", 0.0)
        if str(getattr(event, "device_type", "")).endswith("CUDA"):
            begin, end = event.time_range.start, event.time_range.end
            took = end - begin
            first, last = min(first or begin, begin), max(last or end, end)
        if not took:
            continue
        kind = next((kind for kind, parts in KINDS.items() if any(part in event.name for part in parts)), "other")
        by_kind[kind] += took / steps / 1e3
        names[event.name[:60]] += took / steps / 1e3
    busy = sum(by_kind.values())
    shown = {f"{kind}_ms": value for kind, value in by_kind.items()}
    span = (last - first) / steps / 1e3 if first is not None and last is not None else wall
    top = {f"kernel {name}": value for name, value in sorted(names.items(), key=lambda item: -item[1])[:14]}
    return {**shown, "busy_ms": busy, "idle_ms": span - busy, "span_ms": span, "wall_ms": wall, **top}

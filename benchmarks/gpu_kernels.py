"""The kernels on this device: errors against float64, the limits of the machine, and how near attention comes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from gpu_model import SHAPES, product_shapes
from torch import Tensor

from penstock.engine.ops.kernels import Heads, Kernels, PlacedPrefixes, QkNorm, Segments, SharedPrefixes
from penstock.engine.ops.portable import PortableKernels
from penstock.engine.ops.triton import kernels as triton_kernels
from penstock.engine.ops.triton.kernels import Tiling, TritonKernels

HEADS = (Heads(32, 8, 128), Heads(16, 2, 64), Heads(8, 8, 96), Heads(10, 2, 256))


def seconds(work: Callable[[], Any], device: torch.device, repeats: int = 10, warm: int = 3) -> float:
    """Median time of one call. On a GPU as a graph of ten: launching a small kernel takes longer than running it."""
    for _ in range(warm):
        work()
    if device.type != "cuda":
        times = []
        for _ in range(repeats):
            started = time.perf_counter()
            work()
            times.append(time.perf_counter() - started)
        return statistics.median(times)
    inner = 10
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize(device)
    with torch.cuda.graph(graph):
        for _ in range(inner):
            work()
    graph.replay()
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for begin, end in marks:
        begin.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize(device)
    return statistics.median(begin.elapsed_time(end) for begin, end in marks) / 1e3 / inner


def peaks(shape: str, device: torch.device, rows: int, sustain_s: float) -> dict[str, float]:
    """TFLOP/s of bfloat16 products: 8192 cubed in a burst and for a while, the model's shapes; GB/s of a copy."""
    side = 8192 if device.type == "cuda" else 256
    a, b = (torch.randn(side, side, device=device).to(torch.bfloat16) for _ in range(2))
    found = {"cubed_tflops": 2 * side**3 / seconds(lambda: a @ b, device) / 1e12}
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < sustain_s:
        for _ in range(20):
            a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        count += 20
    found["sustained_tflops"] = 2 * side**3 * count / (time.perf_counter() - started) / 1e12
    total_flop = total_s = 0.0
    for name, (outputs, inputs) in product_shapes(shape).items():
        x = torch.randn(rows, inputs, device=device).to(torch.bfloat16)
        # Several, so that no cache holds the weights, as in a model of many layers.
        weights = [torch.randn(outputs, inputs, device=device).to(torch.bfloat16) for _ in range(4)]
        turn = iter(range(10**9))
        took = seconds(lambda x=x, weights=weights, turn=turn: x @ weights[next(turn) % 4].t(), device, repeats=20)
        found[f"{name}_tflops"] = 2 * rows * outputs * inputs / took / 1e12
        total_flop, total_s = total_flop + 2 * rows * outputs * inputs, total_s + took
    found["layer_tflops"] = total_flop / total_s / 1e12
    size = 1 << (32 if device.type == "cuda" else 20)
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    found["copy_gb_s"] = 2 * size / seconds(lambda: target.copy_(source), device) / 1e9
    return found


def case(
    heads: Heads, lengths: list[int], rows: list[int], block_tokens: int, dtype: torch.dtype, device: torch.device,
    *, layers: int = 1, by_layer: bool = False,
) -> tuple[Tensor, Tensor, Segments]:  # fmt: skip
    """Random qkv, pool and placed segments; blocks are scattered over the pool."""
    generator = torch.Generator().manual_seed(7)
    blocks_of = [-(-length // block_tokens) for length in lengths]
    blocks = sum(blocks_of)
    if by_layer:
        pool = torch.empty(layers, blocks, 2, heads.kv, block_tokens, heads.width, dtype=dtype, device=device)
        pool = pool.transpose(0, 1)
    else:
        pool = torch.empty(blocks, layers, 2, heads.kv, block_tokens, heads.width, dtype=dtype, device=device)
    pool.normal_()
    order = torch.randperm(blocks, generator=generator).to(torch.int32)
    tables = torch.zeros(len(lengths), max(blocks_of), dtype=torch.int32)
    first = 0
    for s, count in enumerate(blocks_of):
        tables[s, :count] = order[first : first + count]
        first += count
    first_row = torch.tensor([0, *torch.tensor(rows).cumsum(0).tolist()], dtype=torch.int32)
    segments = Segments(
        first_row, torch.tensor(lengths, dtype=torch.int32), torch.arange(len(lengths), dtype=torch.int32), tables,
        max(rows),
    )  # fmt: skip
    placed = triton_kernels.place(segments, device)
    qkv = torch.randn(sum(rows), (heads.query + 2 * heads.kv) * heads.width, device=device).to(dtype)
    return qkv, pool, Segments(first_row, segments.lengths, segments.table_rows, tables, max(rows), placed)


def reference(
    qkv: Tensor, heads: Heads, pool: Tensor, layer: int, segments: Segments, scale: float, window: int | None,
    softcap: float | None,
) -> Tensor:  # fmt: skip
    """Attention by its definition, in float64, one sequence at a time."""
    queries = qkv[:, : heads.query * heads.width].view(-1, heads.query, heads.width).double()
    out = torch.empty_like(queries)
    bounds = segments.first_row.tolist()
    for s, length in enumerate(segments.lengths.tolist()):
        first, last = bounds[s], bounds[s + 1]
        blocks = segments.tables[s, : -(-length // pool.shape[4])].to(pool.device, torch.int64)
        kv = pool[blocks, layer].double().permute(1, 2, 0, 3, 4).reshape(2, heads.kv, -1, heads.width)[:, :, :length]
        keys, values = kv.repeat_interleave(heads.query // heads.kv, dim=1)
        scores = queries[first:last].transpose(0, 1) @ keys.transpose(1, 2) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        position = torch.arange(length - (last - first), length, device=pool.device)[:, None]
        key = torch.arange(length, device=pool.device)[None]
        seen = key <= position
        if window is not None:
            seen = seen & (key > position - window)
        out[first:last] = (scores.masked_fill(~seen, float("-inf")).softmax(-1) @ values).transpose(0, 1)
    return out.view(len(qkv), -1)


def error(got: Tensor, wanted: Tensor) -> float:
    """||got - wanted|| / ||wanted||; not a number if any element is none."""
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


def checks(kernels: Kernels, device: torch.device, small: bool, part: int = 0, parts: int = 1) -> dict[str, float]:
    """Relative errors of every kernel against float64; `part` of `parts` of them, since each has to be compiled."""
    found: dict[str, float] = {}
    jobs = [
        (dtype, heads, window, softcap)
        for dtype in (torch.float32, torch.bfloat16)
        for heads in ([Heads(4, 2, 16)] if small else HEADS)
        for window, softcap in ((None, None), (9 if small else 200, 20.0))
    ]  # fmt: skip
    for number, (dtype, heads, window, softcap) in enumerate(jobs):
        if number % parts == part:
            name = f"attention {str(dtype)[6:]} width {heads.width}" + (", window and cap" if window else "")
            found[name] = attention_error(kernels, dtype, heads, window, softcap, device, small)
    for number, dtype in enumerate((torch.float32, torch.bfloat16)):
        if (len(jobs) + number) % parts == part:
            found |= {
                f"{name} {str(dtype)[6:]}": value for name, value in row_errors(kernels, dtype, device, small).items()
            }
    return found


def attention_error(
    kernels: Kernels, dtype: torch.dtype, heads: Heads, window: int | None, softcap: float | None,
    device: torch.device, small: bool,
) -> float:  # fmt: skip
    """The worst of decodes, which are cut into parts here, and of a batch of decodes and chunks of any length."""
    lengths = [40, 1, 33] if small else [3000, 1, 700, 64, 1500, 2048]
    worst = 0.0
    for rows in ([1] * len(lengths), [1, 1, 20] if small else [1, 1, 300, 64, 1, 2048]):
        qkv, pool, segments = case(heads, lengths, rows, 16, dtype, device)
        got = kernels.attention(qkv, heads, pool, 0, segments, 0.1, window, softcap)
        now = error(got, reference(qkv, heads, pool, 0, segments, 0.1, window, softcap))
        worst = now if now != now else max(worst, now)
    return worst


def prefix_case(
    heads: Heads, *, sequences: int, shared: int, own: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Segments]:  # fmt: skip
    """Decodes of which all begin with the same `shared` tokens, a multiple of 16, and that are told to."""
    qkv, pool, plain = case(heads, [shared + own] * sequences, [1] * sequences, 16, dtype, device)
    tables = plain.tables.clone()
    tables[1:, : shared // 16] = tables[0, : shared // 16]
    prefixes = SharedPrefixes(
        torch.tensor([0, sequences], dtype=torch.int32), torch.arange(sequences, dtype=torch.int32),
        torch.tensor([shared // 16], dtype=torch.int32),
    )  # fmt: skip
    return qkv, pool, replace(plain, tables=tables, prefixes=prefixes, placed=None)


def prefix_figures(kernels: TritonKernels, device: torch.device, small: bool) -> dict[str, float]:
    """Decodes that share 1,024 tokens: error, and time with the shared part once against time without."""
    heads = Heads(4, 2, 16) if small else Heads(32, 8, 128)
    sequences, shared, own = (3, 32, 5) if small else (64, 1024, 32)
    dtype = torch.float32 if small else torch.bfloat16
    qkv, pool, segments = prefix_case(heads, sequences=sequences, shared=shared, own=own, dtype=dtype, device=device)
    got = kernels.attention(qkv, heads, pool, 0, segments, 0.1, None)
    found = {"shared prefix error": error(got, reference(qkv, heads, pool, 0, segments, 0.1, None, None))}
    plain = triton_kernels.place(segments, device)
    arrays = kernels.prefix_arrays(
        segments.prefixes, segments.lengths.numpy(), segments.table_rows.numpy(), heads, dtype, 16, sequences
    )
    assert arrays is not None
    once = replace(
        plain, prefixes=PlacedPrefixes(**{name: torch.from_numpy(a).to(device) for name, a in arrays.items()})
    )
    for name, placed in (("once", once), ("read by each", plain)):
        at = replace(segments, placed=placed)
        took = seconds(lambda at=at: kernels.attention(qkv, heads, pool, 0, at, 0.1, None), device)
        found[f"us, {sequences} x ({shared} shared + {own}), {name}"] = took * 1e6
    return found


def row_errors(kernels: Kernels, dtype: torch.dtype, device: torch.device, small: bool) -> dict[str, float]:
    """Of what stands between the products."""
    count, width = (5, 200) if small else (777, 4096)
    x, delta, weight = (torch.randn(count, width, device=device).to(dtype) for _ in range(3))
    gate_up = torch.randn(count, 2 * width, device=device).to(dtype) * 5
    wide = (x + delta).double()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5) * weight[0].double()
    gate, up = gate_up.double().chunk(2, -1)
    return {
        "norm": error(kernels.add_rms_norm(x.clone(), delta, weight[0].contiguous(), 1e-5), normed),
        "silu": error(kernels.silu_mul(gate_up), torch.nn.functional.silu(gate) * up),
        "rotate": rotation_error(kernels, dtype, device, small),
        **(fp8_errors(device) if dtype is torch.bfloat16 and device.type == "cuda" else {}),
    }


def fp8_errors(device: torch.device) -> dict[str, float]:
    """Of a product of 8-bit floats: against what the rounded operands give, and against the exact product."""
    from penstock.engine.weights.fp8 import fp8, quantize_rows

    x, weight = (torch.randn(count, 4096, device=device).to(torch.bfloat16) for count in (333, 6144))
    packed = fp8(device)(weight)
    got, (rounded, scales) = packed.product(x, None), quantize_rows(x)
    as_rounded = (rounded.double() * scales.double()) @ packed.plain().double().t()
    return {"fp8 product as rounded": error(got, as_rounded),
            "fp8 product": error(got, x.double() @ weight.double().t())}  # fmt: skip


def rotation_error(kernels: Kernels, dtype: torch.dtype, device: torch.device, small: bool) -> float:
    """Queries, keys and values against the portable kernels in float64."""
    worst = 0.0
    for heads, half in [(Heads(32, 8, 128), 64), (Heads(8, 2, 96), 48), (Heads(8, 2, 256), 32)][: 1 if small else 3]:
        rows = 333 if not small else 4
        qkv = torch.randn(rows, (heads.query + 2 * heads.kv) * heads.width, device=device).to(dtype)
        angle = torch.rand(rows, half, device=device) * 6
        norm = QkNorm(*(torch.randn(heads.width, device=device).to(dtype) for _ in range(2)), 1e-5)
        index = torch.randperm(1024, device=device)[:rows]
        pool = torch.zeros(64, 2, 2, heads.kv, 16, heads.width, device=device, dtype=dtype)
        mine, exact, exact_pool = qkv.clone(), qkv.double(), pool.double()
        kernels.rotate_and_store(mine, heads, (angle.cos(), angle.sin()), norm, pool, 1, index)
        PortableKernels().rotate_and_store(
            exact, heads, (angle.cos(), angle.sin()), QkNorm(norm.query.double(), norm.key.double(), 1e-5), exact_pool,
            1, index,
        )  # fmt: skip
        queries = heads.query * heads.width
        worst = max(worst, error(mine[:, :queries], exact[:, :queries]), error(pool, exact_pool))
    return worst


def decode_bandwidth(
    kernels: TritonKernels, device: torch.device, *, sequences: int, length: int, block_tokens: int, layers: int,
    by_layer: bool = False, tiling: Tiling | None = None,
) -> float:  # fmt: skip
    """GB/s of keys and values that attention of decodes reads, over layers of their own in a large pool."""
    c = SHAPES["8b" if device.type == "cuda" else "tiny"]
    heads = Heads(c["num_attention_heads"], c["num_key_value_heads"], c["hidden_size"] // c["num_attention_heads"])
    lengths = [max(1, length * (60 + s % 81) // 100) for s in range(sequences)]
    qkv, pool, segments = case(
        heads, lengths, [1] * sequences, block_tokens, torch.bfloat16, device, layers=layers, by_layer=by_layer
    )
    kept = triton_kernels._tiling
    if tiling is not None:
        triton_kernels._tiling = lambda *_, **__: tiling  # type: ignore[assignment]
    try:
        turn = iter(range(10**9))
        took = seconds(
            lambda: kernels.attention(qkv, heads, pool, next(turn) % layers, segments, 0.088, None), device, 12
        )
    finally:
        triton_kernels._tiling = kept
    return sum(lengths) * 2 * heads.kv * heads.width * 2 / took / 1e9


def prefill_rate(
    kernels: TritonKernels, device: torch.device, *, chunks: int, rows: int, tiling: Tiling | None = None
) -> float:
    """TFLOP/s of causal attention of whole prompts; a row counts only the keys that it sees."""
    c = SHAPES["8b" if device.type == "cuda" else "tiny"]
    heads = Heads(c["num_attention_heads"], c["num_key_value_heads"], c["hidden_size"] // c["num_attention_heads"])
    qkv, pool, segments = case(heads, [rows] * chunks, [rows] * chunks, 16, torch.bfloat16, device)
    kept = triton_kernels._tiling
    if tiling is not None:
        triton_kernels._tiling = lambda *_, **__: tiling  # type: ignore[assignment]
    try:
        took = seconds(lambda: kernels.attention(qkv, heads, pool, 0, segments, 0.088, None), device)
    finally:
        triton_kernels._tiling = kept
    return 4 * chunks * rows * (rows + 1) / 2 * heads.query * heads.width / took / 1e12


def row_bandwidths(kernels: TritonKernels, device: torch.device, rows: int) -> dict[str, float]:
    """GB/s that the kernels between the products read and write, at the model's widths."""
    c = SHAPES["8b" if device.type == "cuda" else "tiny"]
    hidden, inner = c["hidden_size"], c["intermediate_size"]
    heads = Heads(c["num_attention_heads"], c["num_key_value_heads"], hidden // c["num_attention_heads"])
    x, delta = (torch.randn(rows, hidden, device=device).to(torch.bfloat16) for _ in range(2))
    weight = torch.ones(hidden, device=device, dtype=torch.bfloat16)
    gate_up = torch.randn(rows, 2 * inner, device=device).to(torch.bfloat16)
    qkv = torch.randn(rows, hidden + 2 * heads.kv * heads.width, device=device).to(torch.bfloat16)
    pool = torch.empty(-(-rows // 16), 1, 2, heads.kv, 16, heads.width, device=device, dtype=torch.bfloat16)
    angle = torch.rand(rows, heads.width // 2, device=device)
    angles, index = (angle.cos(), angle.sin()), torch.randperm(rows, device=device)
    norm_s = seconds(lambda: kernels.add_rms_norm(x, delta, weight, 1e-5), device)
    silu_s = seconds(lambda: kernels.silu_mul(gate_up), device)
    rotate_s = seconds(lambda: kernels.rotate_and_store(qkv, heads, angles, None, pool, 0, index), device)
    return {
        "norm_gb_s": 4 * x.nbytes / norm_s / 1e9,
        "silu_gb_s": 1.5 * gate_up.nbytes / silu_s / 1e9,
        "rotate_gb_s": 2 * qkv.nbytes / rotate_s / 1e9,
    }

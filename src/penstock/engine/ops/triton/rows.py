"""What happens to each row between the matrix products, fused so that a row is read and written once.

Rounding is the portable kernels': a norm is rounded to the dtype before its weight, silu before its product. Rotation
is in float32 with one rounding at the end.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def add_rms_norm(x, delta, weight, out, eps, WIDTH: tl.constexpr, PADDED: tl.constexpr, ADDS: tl.constexpr):
    """Grid: (rows). All contiguous, [T, WIDTH]."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, PADDED)
    inside = columns < WIDTH
    at = row * WIDTH + columns
    value = tl.load(x + at, mask=inside, other=0.0)
    wide = value.to(tl.float32)
    if ADDS:
        summed = (wide + tl.load(delta + at, mask=inside, other=0.0).to(tl.float32)).to(value.dtype)
        tl.store(x + at, summed, mask=inside)
        wide = summed.to(tl.float32)
    wide = wide * tl.rsqrt(tl.sum(wide * wide, 0) / WIDTH + eps)
    scale = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, (wide.to(value.dtype).to(tl.float32) * scale).to(value.dtype), mask=inside)


@triton.jit
def silu_mul(gate_up, out, width, BLOCK: tl.constexpr):
    """Grid: (blocks of columns, rows). gate_up [T, 2 * width], out [T, width], contiguous."""
    row = tl.program_id(1).to(tl.int64)
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    gate = tl.load(gate_up + row * 2 * width + columns, mask=inside, other=0.0)
    up = tl.load(gate_up + row * 2 * width + width + columns, mask=inside, other=0.0)
    wide = gate.to(tl.float32)
    # Of a large negative gate exp2 is inf, and gate / inf the 0 it should be.
    silu = (wide / (1.0 + tl.exp2(wide * -1.4426950408889634))).to(gate.dtype)
    tl.store(out + row * width + columns, (silu.to(tl.float32) * up.to(tl.float32)).to(gate.dtype), mask=inside)


@triton.jit
def quantize_rows(x, out, scales, WIDTH: tl.constexpr, BLOCK: tl.constexpr, LARGEST: tl.constexpr):
    """x [T, WIDTH] to out in 8 bits and scales float32 [T], with x = out * scale. Grid: (rows)."""
    row = tl.program_id(0).to(tl.int64)
    peak = tl.zeros([BLOCK], tl.float32)
    for start in range(0, WIDTH, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        value = tl.load(x + row * WIDTH + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
        peak = tl.maximum(peak, tl.abs(value))
    # A row of zeros has any scale but 0.
    scale = tl.maximum(tl.max(peak, 0) / LARGEST, 1e-12)
    tl.store(scales + row, scale)
    for start in range(0, WIDTH, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        value = tl.load(x + row * WIDTH + columns, mask=columns < WIDTH, other=0.0).to(tl.float32) / scale
        value = tl.minimum(tl.maximum(value, -LARGEST), LARGEST)
        tl.store(out + row * WIDTH + columns, value.to(out.dtype.element_ty), mask=columns < WIDTH)


@triton.jit
def rotate_and_store(
    qkv, pool, cos, sin, query_norm, key_norm, kv_index,
    layer_offset, block_stride, kv_stride, head_stride, token_stride, eps,
    QUERY: tl.constexpr, KV: tl.constexpr, WIDTH: tl.constexpr, HALF: tl.constexpr, BLOCK_TOKENS: tl.constexpr,
    HEADS: tl.constexpr, PADDED_HALF: tl.constexpr, PADDED_REST: tl.constexpr, PADDED: tl.constexpr,
    TURNS: tl.constexpr, NORMS: tl.constexpr,
):  # fmt: skip
    """Grid: (rows, tiles of HEADS query and key heads, and then one for all values).

    A head's two turning halves, of HALF elements each, are held side by side: every element is loaded and stored by one
    thread, so turning in place is no race. What is behind them (REST) stays, but for the norm.
    """
    row = tl.program_id(0).to(tl.int64)
    number = tl.program_id(1)
    turning: tl.constexpr = (QUERY + KV + HEADS - 1) // HEADS
    index = tl.load(kv_index + row)
    place = pool + layer_offset + (index // BLOCK_TOKENS) * block_stride + (index % BLOCK_TOKENS) * token_stride
    base = qkv + row * ((QUERY + 2 * KV) * WIDTH)
    if number == turning:
        column = tl.arange(0, PADDED)
        for head in range(KV):
            inside = column < WIDTH
            value = tl.load(base + (QUERY + KV + head) * WIDTH + column, mask=inside)
            tl.store(place + kv_stride + head * head_stride + column, value, mask=inside)
        return

    head = number * HEADS + tl.arange(0, HEADS)
    real = head < QUERY + KV
    is_query = head < QUERY
    half = tl.arange(0, PADDED_HALF)
    rest = 2 * HALF + tl.arange(0, PADDED_REST)
    halves = real[:, None] & (half < HALF)[None, :]
    rests = real[:, None] & (rest < WIDTH)[None, :]
    left_at = head[:, None] * WIDTH + half[None, :]
    rest_at = head[:, None] * WIDTH + rest[None, :]
    left = tl.load(base + left_at, mask=halves, other=0.0)
    right = tl.load(base + left_at + HALF, mask=halves, other=0.0)
    behind = tl.load(base + rest_at, mask=rests, other=0.0)
    dtype: tl.constexpr = left.dtype
    left, right, behind = left.to(tl.float32), right.to(tl.float32), behind.to(tl.float32)
    if NORMS:
        squares = tl.sum(left * left, 1) + tl.sum(right * right, 1) + tl.sum(behind * behind, 1)
        factor = tl.rsqrt(squares / WIDTH + eps)[:, None]
        left = _scaled(left * factor, query_norm, key_norm, is_query, half, half < HALF, dtype)
        right = _scaled(right * factor, query_norm, key_norm, is_query, half + HALF, half < HALF, dtype)
        behind = _scaled(behind * factor, query_norm, key_norm, is_query, rest, rest < WIDTH, dtype)
    if TURNS:
        c = tl.load(cos + row * HALF + half, mask=half < HALF, other=0.0)[None, :]
        s = tl.load(sin + row * HALF + half, mask=half < HALF, other=0.0)[None, :]
        left, right = left * c - right * s, right * c + left * s
    left, right, behind = left.to(dtype), right.to(dtype), behind.to(dtype)
    queries = is_query[:, None]
    tl.store(base + left_at, left, mask=halves & queries)
    tl.store(base + left_at + HALF, right, mask=halves & queries)
    key_at = (head - QUERY)[:, None] * head_stride
    keys = (real & (head >= QUERY))[:, None]
    tl.store(place + key_at + half[None, :], left, mask=halves & keys)
    tl.store(place + key_at + half[None, :] + HALF, right, mask=halves & keys)
    if NORMS:
        tl.store(base + rest_at, behind, mask=rests & queries)
    tl.store(place + key_at + rest[None, :], behind, mask=rests & keys)


@triton.jit
def _scaled(value, query_norm, key_norm, is_query, column, inside, dtype: tl.constexpr):
    """Normed heads [HEADS, columns] times the norm's weights that are theirs, rounded before and after."""
    mine = tl.load(query_norm + column, mask=inside, other=0.0)[None, :].to(tl.float32)
    keys = tl.load(key_norm + column, mask=inside, other=0.0)[None, :].to(tl.float32)
    weight = tl.where(is_query[:, None], mine, keys)
    return (value.to(dtype).to(tl.float32) * weight).to(dtype).to(tl.float32)

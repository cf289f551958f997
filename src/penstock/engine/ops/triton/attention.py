"""Attention over the paged cache in one kernel: decodes, ragged chunks, and the parts that a long row is cut into.

A tile is BLOCK_M rows of one KV head: some of a sequence's tokens, each with all the query heads that share the head,
so that keys and values are read once for the whole group. A decode's tile is its group alone, padded to what the matrix
units take. With SPLITS > 1 the keys of a row are shared out among programs, which a second kernel merges by their
log-sum-exp; without, a small batch would leave most of the GPU idle.

Scores are kept in base 2: exp2 is what the hardware has. What lies behind a sequence's end is masked at the load, since
memory that nobody wrote may hold NaN, and 0 * NaN is NaN.

Sources: FlashAttention-2, Dao, 2023; Flash-Decoding, Dao et al., 2023; PagedAttention, Kwon et al., SOSP 2023.
"""

from __future__ import annotations

import triton
import triton.language as tl


# Of a number that changes from step to step no compiled variant is wanted.
@triton.jit(do_not_specialize=["first_segment"])
def attend(
    qkv, pool, out, partial, lse, tables, table_rows, first_row, lengths,
    qkv_stride, layer_offset, block_stride, kv_stride, head_stride, token_stride, table_stride, first_segment,
    scale, window, softcap,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, BLOCK_TOKENS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SPLITS: tl.constexpr, WINDOWED: tl.constexpr, CAPPED: tl.constexpr,
    IEEE: tl.constexpr,
):  # fmt: skip
    """Grid: (KV heads, tiles of the longest segment * SPLITS, segments). With SPLITS > 1 every segment is one row.

    IEEE: multiply in float32, for float32 and in the interpreter, which cannot multiply bfloat16.

    out [T, N * H]; partial float32 [S, N, SPLITS, H] and lse float32 [S, N, SPLITS], in base 2, if SPLITS > 1.
    """
    LOG2E: tl.constexpr = 1.4426950408889634
    TOKENS: tl.constexpr = BLOCK_M // GROUP
    head = tl.program_id(0)
    segment = tl.program_id(2) + first_segment
    tile = tl.program_id(1) // SPLITS
    split = tl.program_id(1) % SPLITS
    begin = tl.load(first_row + segment)
    rows = tl.load(first_row + segment + 1) - begin
    length = tl.load(lengths + segment)
    first = tile * TOKENS
    if first >= rows:
        return

    lane = tl.arange(0, BLOCK_M)
    token = lane // GROUP
    columns = tl.arange(0, PADDED)
    mine = (token < TOKENS) & (first + token < rows)
    position = length - rows + first + token
    query_head = head * GROUP + lane % GROUP
    query_at = (begin + first + token).to(tl.int64) * qkv_stride + query_head * WIDTH
    inside = mine[:, None] & (columns < WIDTH)[None, :]
    queries = tl.load(qkv + query_at[:, None] + columns[None, :], mask=inside, other=0.0)

    low = 0
    high = tl.minimum(length, length - rows + first + TOKENS)
    if WINDOWED:
        low = tl.maximum(0, length - rows + first - window + 1) // BLOCK_N * BLOCK_N
    if SPLITS > 1:
        share = tl.cdiv(tl.cdiv(high - low, BLOCK_N), SPLITS) * BLOCK_N
        low = low + split * share
        high = tl.minimum(high, low + share)

    largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    attended = tl.zeros([BLOCK_M, PADDED], tl.float32)
    base = pool + layer_offset + head * head_stride
    table = tables + tl.load(table_rows + segment).to(tl.int64) * table_stride
    for start in range(low, high, BLOCK_N):
        key = start + tl.arange(0, BLOCK_N)
        known = key < high
        if BLOCK_TOKENS % BLOCK_N == 0:
            block = tl.load(table + start // BLOCK_TOKENS).to(tl.int64)
            at = block * block_stride + (start % BLOCK_TOKENS + tl.arange(0, BLOCK_N)) * token_stride
        else:
            block = tl.load(table + key // BLOCK_TOKENS, mask=known, other=0).to(tl.int64)
            at = block * block_stride + (key % BLOCK_TOKENS) * token_stride
        readable = known[:, None] & (columns < WIDTH)[None, :]
        keys = tl.load(base + at[:, None] + columns[None, :], mask=readable, other=0.0)
        if IEEE:
            scores = tl.dot(queries.to(tl.float32), tl.trans(keys.to(tl.float32)), input_precision="ieee") * scale
        else:
            scores = tl.dot(queries, tl.trans(keys)) * scale
        if CAPPED:
            scores = softcap * (1.0 - 2.0 / (tl.exp2(scores * (2.0 * LOG2E / softcap)) + 1.0))
        seen = known[None, :] & (key[None, :] <= position[:, None])
        if WINDOWED:
            seen = seen & (key[None, :] > position[:, None] - window)
        scores = tl.where(seen, scores * LOG2E, float("-inf"))
        peak = tl.maximum(largest, tl.max(scores, 1))
        # A row that has seen nothing yet has no largest score: -inf less -inf is not a number.
        anchor = tl.where(peak == float("-inf"), 0.0, peak)
        weights = tl.exp2(scores - anchor[:, None])
        faded = tl.exp2(largest - anchor)
        total = total * faded + tl.sum(weights, 1)
        values = tl.load(base + kv_stride + at[:, None] + columns[None, :], mask=readable, other=0.0)
        attended = attended * faded[:, None]
        if IEEE:
            attended = tl.dot(weights, values.to(tl.float32), attended, input_precision="ieee")
        else:
            attended = tl.dot(weights.to(values.dtype), values, attended)
        largest = peak

    attended = attended / tl.where(total == 0.0, 1.0, total)[:, None]
    if SPLITS > 1:
        row = (segment - first_segment).to(tl.int64) * (KV_HEADS * GROUP) + query_head
        at = row * SPLITS + split
        tl.store(partial + at[:, None] * WIDTH + columns[None, :], attended, mask=inside)
        tl.store(lse + at, largest + tl.log2(total), mask=mine)
    else:
        out_at = (begin + first + token).to(tl.int64) * (KV_HEADS * GROUP * WIDTH) + query_head * WIDTH
        tl.store(out + out_at[:, None] + columns[None, :], attended.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["first_segment"])
def merge(
    partial, lse, out, rows_of, first_segment,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, SPLITS: tl.constexpr, PADDED_SPLITS: tl.constexpr,
):  # fmt: skip
    """Parts of a row to the row, by their log-sum-exp in base 2. Grid: (query heads, segments of one row)."""
    head, index = tl.program_id(0), tl.program_id(1)
    part, columns = tl.arange(0, PADDED_SPLITS), tl.arange(0, PADDED)
    at = (index.to(tl.int64) * HEADS + head) * SPLITS + part
    sums = tl.load(lse + at, mask=part < SPLITS, other=float("-inf"))
    weights = tl.exp2(sums - tl.max(sums, 0))
    weights = weights / tl.sum(weights, 0)
    inside = (part < SPLITS)[:, None] & (columns < WIDTH)[None, :]
    parts = tl.load(partial + at[:, None] * WIDTH + columns[None, :], mask=inside, other=0.0)
    merged = tl.sum(parts * weights[:, None], 0)
    row = tl.load(rows_of + index + first_segment).to(tl.int64)
    tl.store(out + (row * HEADS + head) * WIDTH + columns, merged.to(out.dtype.element_ty), mask=columns < WIDTH)

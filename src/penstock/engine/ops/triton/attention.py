"""Attention over the paged cache in one kernel: decodes, ragged chunks, and the parts that a long row is cut into.

A tile is BLOCK_M rows of one KV head: some of a sequence's tokens, each with all the query heads that share the head,
so that keys and values are read once for the whole group. A decode's tile is its group alone, padded to what the matrix
units take. With SPLITS > 1 the keys of a row are shared out among programs, which a second kernel merges by their
log-sum-exp; without, a small batch would leave most of the GPU idle. Blocks that several decodes have in common are one
more part of each of them, computed for all of them at once: a product of matrices that reads the blocks once.

Scores are kept in base 2: exp2 is what the hardware has. What lies behind a sequence's end is masked at the load, since
memory that nobody wrote may hold NaN, and 0 * NaN is NaN.

Sources: FlashAttention-2, Dao, 2023; Flash-Decoding, Dao et al., 2023; PagedAttention, Kwon et al., SOSP 2023;
Hydragen, Juravsky et al., 2024.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _over_keys(
    queries, base, table, low, high, position, columns, block_stride, kv_stride, token_stride, scale, window, softcap,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, BLOCK_TOKENS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    WINDOWED: tl.constexpr, CAPPED: tl.constexpr, IEEE: tl.constexpr,
):  # fmt: skip
    """A tile's attention over keys low to high of one table: [BLOCK_M, PADDED], and log-sum-exp in base 2 [BLOCK_M]."""
    LOG2E: tl.constexpr = 1.4426950408889634
    largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    attended = tl.zeros([BLOCK_M, PADDED], tl.float32)
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
    return attended, largest + tl.log2(total)


# Of a number that changes from step to step no compiled variant is wanted.
@triton.jit(do_not_specialize=["first_segment"])
def attend(
    qkv, pool, out, partial, lse, tables, table_rows, first_row, lengths, skips,
    qkv_stride, layer_offset, block_stride, kv_stride, head_stride, token_stride, table_stride, first_segment,
    scale, window, softcap,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, BLOCK_TOKENS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SPLITS: tl.constexpr, PARTS: tl.constexpr, SKIPS: tl.constexpr,
    WINDOWED: tl.constexpr, CAPPED: tl.constexpr, IEEE: tl.constexpr,
):  # fmt: skip
    """Grid: (KV heads, tiles of the longest segment * SPLITS, segments). With PARTS > 1 every segment is one row.

    out [T, N * H]; partial float32 [S, N, PARTS, H] and lse float32 [S, N, PARTS], in base 2, if PARTS > 1: the first
    SPLITS of them are this kernel's. skips int32 [S], with SKIPS: tokens at the front that are another part's.
    IEEE: multiply in float32, for float32 and in the interpreter, which cannot multiply bfloat16.
    """
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
    if SKIPS:
        low = tl.maximum(low, tl.load(skips + segment))
    if SPLITS > 1:
        share = tl.cdiv(tl.cdiv(high - low, BLOCK_N), SPLITS) * BLOCK_N
        low = low + split * share
        high = tl.minimum(high, low + share)

    table = tables + tl.load(table_rows + segment).to(tl.int64) * table_stride
    attended, sums = _over_keys(
        queries, pool + layer_offset + head * head_stride, table, low, high, position, columns,
        block_stride, kv_stride, token_stride, scale, window, softcap,
        WIDTH, PADDED, BLOCK_TOKENS, BLOCK_M, BLOCK_N, WINDOWED, CAPPED, IEEE,
    )  # fmt: skip
    if PARTS > 1:
        row = (segment - first_segment).to(tl.int64) * (KV_HEADS * GROUP) + query_head
        at = row * PARTS + split
        tl.store(partial + at[:, None] * WIDTH + columns[None, :], attended, mask=inside)
        tl.store(lse + at, sums, mask=mine)
    else:
        out_at = (begin + first + token).to(tl.int64) * (KV_HEADS * GROUP * WIDTH) + query_head * WIDTH
        tl.store(out + out_at[:, None] + columns[None, :], attended.to(out.dtype.element_ty), mask=inside)


@triton.jit
def attend_prefixes(
    qkv, pool, partial, lse, tables, first_row, lengths, tiles, members,
    qkv_stride, layer_offset, block_stride, kv_stride, head_stride, token_stride, table_stride,
    scale, window, softcap,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, BLOCK_TOKENS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SPLITS: tl.constexpr, PARTS: tl.constexpr,
    WINDOWED: tl.constexpr, CAPPED: tl.constexpr, IEEE: tl.constexpr,
):  # fmt: skip
    """What decodes have in common. Grid: (KV heads, SPLITS, tiles).

    tiles int32 [any, 4]: first index in `members`, how many (BLOCK_M // GROUP at most), row in `tables`, tokens.
    members int32: segments of one row. Of their parts the last SPLITS are written.
    """
    head, split = tl.program_id(0), tl.program_id(1)
    tile = tiles + tl.program_id(2) * 4
    first, count, tokens = tl.load(tile), tl.load(tile + 1), tl.load(tile + 3)
    table = tables + tl.load(tile + 2).to(tl.int64) * table_stride
    lane = tl.arange(0, BLOCK_M)
    columns = tl.arange(0, PADDED)
    mine = lane // GROUP < count
    segment = tl.load(members + first + lane // GROUP, mask=mine, other=0)
    row = tl.load(first_row + segment, mask=mine, other=0).to(tl.int64)
    position = tl.load(lengths + segment, mask=mine, other=1) - 1
    query_head = head * GROUP + lane % GROUP
    inside = mine[:, None] & (columns < WIDTH)[None, :]
    query_at = row * qkv_stride + query_head * WIDTH
    queries = tl.load(qkv + query_at[:, None] + columns[None, :], mask=inside, other=0.0)
    share = tl.cdiv(tl.cdiv(tokens, BLOCK_N), SPLITS) * BLOCK_N
    low = split * share
    attended, sums = _over_keys(
        queries, pool + layer_offset + head * head_stride, table, low, tl.minimum(tokens, low + share), position,
        columns, block_stride, kv_stride, token_stride, scale, window, softcap,
        WIDTH, PADDED, BLOCK_TOKENS, BLOCK_M, BLOCK_N, WINDOWED, CAPPED, IEEE,
    )  # fmt: skip
    at = (segment.to(tl.int64) * (KV_HEADS * GROUP) + query_head) * PARTS + (PARTS - SPLITS + split)
    tl.store(partial + at[:, None] * WIDTH + columns[None, :], attended, mask=inside)
    tl.store(lse + at, sums, mask=mine)


@triton.jit(do_not_specialize=["first_segment"])
def merge(
    partial, lse, out, rows_of, first_segment,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, PARTS: tl.constexpr, PADDED_PARTS: tl.constexpr,
):  # fmt: skip
    """Parts of a row to the row, by their log-sum-exp in base 2. Grid: (query heads, segments of one row)."""
    head, index = tl.program_id(0), tl.program_id(1)
    part, columns = tl.arange(0, PADDED_PARTS), tl.arange(0, PADDED)
    at = (index.to(tl.int64) * HEADS + head) * PARTS + part
    sums = tl.load(lse + at, mask=part < PARTS, other=float("-inf"))
    weights = tl.exp2(sums - tl.max(sums, 0))
    weights = weights / tl.sum(weights, 0)
    inside = (part < PARTS)[:, None] & (columns < WIDTH)[None, :]
    parts = tl.load(partial + at[:, None] * WIDTH + columns[None, :], mask=inside, other=0.0)
    merged = tl.sum(parts * weights[:, None], 0)
    row = tl.load(rows_of + index + first_segment).to(tl.int64)
    tl.store(out + (row * HEADS + head) * WIDTH + columns, merged.to(out.dtype.element_ty), mask=columns < WIDTH)

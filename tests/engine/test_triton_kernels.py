"""The Triton kernels against their meaning: in Triton's interpreter on the CPU, or compiled where there is a GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: pip install 'penstock[dev]'")

from test_engine_kernels import dense_attention, lay_out

from penstock.engine.ops.kernels import Heads, QkNorm, SharedPrefixes
from penstock.engine.ops.portable import PortableKernels
from penstock.engine.ops.triton.kernels import TritonKernels, place

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
KERNELS = TritonKernels(DEVICE)
PORTABLE = PortableKernels()


def attend(kernels, case, dtype=torch.float32, softcap=None, scale=0.3):
    qkv, heads, pool, segments, dense, window = lay_out(case, dtype)
    got = kernels.attention(qkv.to(DEVICE), heads, pool.to(DEVICE), 1, segments, scale, window, softcap)
    return got.double().cpu(), dense_attention(qkv, heads, segments, dense, window, scale, softcap)


# block_tokens, heads, lengths, rows of this step, window, seed
CASES = {
    "decodes": (16, Heads(2, 1, 64), [40, 1, 32], [1, 1, 1], None, 1),
    "decodes and chunks": (16, Heads(4, 2, 16), [36, 7, 21], [1, 1, 12], None, 2),
    "a group that is no power of two": (8, Heads(5, 1, 24), [20, 40], [1, 11], None, 3),
    "one head each, width 96": (3, Heads(2, 2, 96), [36, 9], [5, 9], None, 4),
    "width 128, whole tiles in a block": (64, Heads(4, 1, 128), [70, 70], [1, 5], None, 5),
    "width 256": (16, Heads(2, 1, 256), [35], [9], None, 6),
    "a window": (16, Heads(2, 1, 32), [90, 60, 12], [1, 20, 12], 20, 7),
    "a window of one token": (8, Heads(2, 1, 16), [40, 30], [1, 9], 1, 8),
    "single rows among the chunks": (16, Heads(4, 2, 16), [20, 40, 33], [5, 1, 9], None, 9),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_attention_is_what_its_definition_says_and_reads_nothing_else(case):
    got, wanted = attend(KERNELS, case)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("splits", [2, 8])
@pytest.mark.parametrize("window", [None, 30])
def test_a_row_cut_into_parts_is_the_same_row(monkeypatch, splits, window):
    monkeypatch.setattr(KERNELS, "splits", lambda programs, longest: splits)
    got, wanted = attend(KERNELS, (16, Heads(3, 1, 24), [150, 3], [1, 1], window, 10))
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def with_prefixes(case, groups):
    """`case`, the tables of each group's members beginning with the same whole blocks; groups: (segments, blocks)."""
    qkv, heads, pool, segments, dense, window = lay_out(case)
    for members, blocks in groups:
        rows = segments.table_rows[members].long()
        segments.tables[rows[1:], :blocks] = segments.tables[rows[0], :blocks]
        for member in members[1:]:
            dense[member][:, :, : blocks * case[0]] = dense[members[0]][:, :, : blocks * case[0]]
    first = torch.tensor([0, *torch.tensor([len(members) for members, _ in groups]).cumsum(0).tolist()])
    shared = SharedPrefixes(
        first.to(torch.int32), torch.tensor([m for members, _ in groups for m in members], dtype=torch.int32),
        torch.tensor([blocks for _, blocks in groups], dtype=torch.int32),
    )  # fmt: skip
    return qkv, heads, pool, replace(segments, prefixes=shared), dense, window


@pytest.mark.parametrize(
    ("splits", "window", "rows"), [(1, None, 1), (2, None, 1), (1, 25, 1), (1, None, 4)],
    ids=["whole", "in parts", "with a window", "beside a chunk"],
)  # fmt: skip
def test_a_shared_prefix_computed_once_is_the_same_attention(monkeypatch, splits, window, rows):
    monkeypatch.setattr(KERNELS, "splits", lambda programs, longest: splits)
    # Ten members of one group are more than fit into a tile; the last one is no decode if it has several rows.
    case = (8, Heads(4, 2, 16), [41, 50, 33, 60, 35, 40, 37, 34, 36, 48], [1] * 9 + [rows], window, 12)
    qkv, heads, pool, segments, dense, _ = with_prefixes(case, [([1, 3, 0, 4, 5, 7, 8, 9], 4), ([2, 6], 3)])
    used = []
    arrays = KERNELS.prefix_arrays
    monkeypatch.setattr(KERNELS, "prefix_arrays", lambda *given: used.append(arrays(*given)) or used[-1])
    got = KERNELS.attention(qkv.to(DEVICE), heads, pool.to(DEVICE), 1, segments, 0.3, window).double().cpu()
    torch.testing.assert_close(got, dense_attention(qkv, heads, segments, dense, window, 0.3), rtol=1e-5, atol=1e-5)
    assert used[0]["members"].tolist() == [1, 3, 0, 4, 5, 7, 8, *([9] if rows == 1 else []), 2, 6]
    assert used[0]["skips"][9] == (32 if rows == 1 else 0)


def test_a_prefix_that_saves_little_is_not_computed_apart():
    case = (8, Heads(4, 2, 16), [60, 60, 60], [1, 1, 1], None, 13)
    _, heads, _, segments, _, _ = with_prefixes(case, [([0, 1], 1)])
    lengths, rows = segments.lengths.numpy(), segments.table_rows.numpy()
    assert KERNELS.prefix_arrays(segments.prefixes, lengths, rows, heads, torch.float32, 8, 3) is None


def test_capped_scores():
    got, wanted = attend(KERNELS, CASES["decodes and chunks"], softcap=3.0, scale=5.0)
    torch.testing.assert_close(got, wanted, rtol=2e-5, atol=2e-5)


def test_attention_in_bfloat16_is_within_its_rounding():
    got, wanted = attend(KERNELS, CASES["decodes and chunks"], dtype=torch.bfloat16)
    torch.testing.assert_close(got, wanted, rtol=2e-2, atol=2e-2)


def test_large_scores_do_not_overflow_and_a_nan_stays_in_its_row():
    qkv, heads, pool, segments, dense, _ = lay_out((8, Heads(4, 2, 16), [30, 9], [5, 1], None, 11))
    qkv *= 1e4
    wanted = dense_attention(qkv, heads, segments, dense, None, 1.0)
    qkv[1, 0] = float("nan")
    got = KERNELS.attention(qkv.to(DEVICE), heads, pool.to(DEVICE), 1, segments, 1.0, None).double().cpu()
    assert got[1, :16].isnan().all()
    got[1, :16] = wanted[1, :16]
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_placed_segments_count_the_decodes_that_come_first():
    _, _, _, segments, _, _ = lay_out(CASES["decodes and chunks"])
    placed = place(segments, DEVICE)
    assert (placed.decodes, placed.longest_decode, placed.segments) == (2, 36, 3)


def test_few_long_rows_are_cut_and_many_short_ones_are_not():
    kernels = TritonKernels(DEVICE)
    kernels.processors = 132
    assert kernels.splits(8, 8192) == 32
    assert kernels.splits(8, 100) == 1
    assert kernels.splits(5000, 700) == 1
    assert kernels.splits(5000, 100_000) == 16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("adds", [True, False])
def test_norm_with_residual(dtype, adds):
    generator = torch.Generator().manual_seed(1)
    x, delta = (torch.randn(7, 200, generator=generator).to(dtype) for _ in range(2))
    weight = torch.randn(200, generator=generator).to(dtype)
    mine, theirs = x.clone().to(DEVICE), x.clone()
    got = KERNELS.add_rms_norm(mine, delta.to(DEVICE) if adds else None, weight.to(DEVICE), 1e-5)
    wanted = PORTABLE.add_rms_norm(theirs, delta if adds else None, weight, 1e-5)
    # The interpreter cuts bfloat16 off where the GPU rounds.
    close = {"rtol": 1e-6, "atol": 1e-6} if dtype is torch.float32 else {"rtol": 2e-2, "atol": 1e-2}
    torch.testing.assert_close(mine.cpu(), theirs, **close)
    torch.testing.assert_close(got.cpu(), wanted, **close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_silu(dtype):
    gate_up = (torch.randn(5, 2 * 300, generator=torch.Generator().manual_seed(2)) * 30).to(dtype)
    gate_up[0, 0], gate_up[0, 1] = -200.0, 200.0
    got = KERNELS.silu_mul(gate_up.to(DEVICE)).cpu()
    close = {"rtol": 1e-5, "atol": 1e-6} if dtype is torch.float32 else {"rtol": 2e-2, "atol": 1e-3}
    torch.testing.assert_close(got, PORTABLE.silu_mul(gate_up), **close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("heads", "half", "norms"),
    [
        (Heads(4, 2, 64), 32, False),
        (Heads(20, 4, 24), 12, True),
        (Heads(2, 2, 96), 16, True),
        (Heads(3, 1, 32), 8, False),
        (Heads(2, 1, 16), None, False),
    ],
    ids=["whole heads", "norms, more heads than a tile", "a part of a head turns, norms", "a part", "no rotation"],
)
def test_rotation_norm_and_store(dtype, heads, half, norms):
    generator = torch.Generator().manual_seed(3)
    rows, block_tokens = 6, 4
    qkv = torch.randn(rows, (heads.query + 2 * heads.kv) * heads.width, generator=generator).to(dtype)
    pool = torch.full((5, 2, 2, heads.kv, block_tokens, heads.width), 7.0, dtype=dtype)
    index = torch.tensor([3, 18, 0, 5, 19, 9])
    angles = None
    if half is not None:
        angle = torch.rand(rows, half, generator=generator) * 6
        angles = (angle.cos(), angle.sin())
    norm = None
    if norms:
        norm = QkNorm(*(torch.randn(heads.width, generator=generator).to(dtype) for _ in range(2)), 1e-5)
    mine, my_pool = qkv.clone().to(DEVICE), pool.clone().to(DEVICE)
    KERNELS.rotate_and_store(
        mine, heads, None if angles is None else tuple(a.to(DEVICE) for a in angles),
        None if norm is None else QkNorm(norm.query.to(DEVICE), norm.key.to(DEVICE), norm.eps),
        my_pool, 1, index.to(DEVICE),
    )  # fmt: skip
    PORTABLE.rotate_and_store(qkv, heads, angles, norm, pool, 1, index)
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 3e-2, "atol": 5e-2}
    queries = heads.query * heads.width
    torch.testing.assert_close(mine[:, :queries].cpu(), qkv[:, :queries], **close)
    torch.testing.assert_close(my_pool.cpu(), pool, **close)


def test_the_pool_may_lie_layer_by_layer():
    qkv, heads, pool, segments, dense, _ = lay_out(CASES["decodes and chunks"])
    by_layer = pool.transpose(0, 1).contiguous().transpose(0, 1)
    assert by_layer.stride() != pool.stride()
    got = KERNELS.attention(qkv.to(DEVICE), heads, by_layer.to(DEVICE), 1, segments, 0.3, None).double().cpu()
    torch.testing.assert_close(got, dense_attention(qkv, heads, segments, dense, None, 0.3), rtol=1e-5, atol=1e-5)

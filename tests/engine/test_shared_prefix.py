"""Attention with common prefixes: the same as without, whatever shares what; and whom the engine finds to share."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from engine_driver import Driver
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.control.step import Step
from penstock.engine.engine import Engine
from penstock.engine.loader import load_model
from penstock.engine.ops import native
from penstock.engine.ops.kernels import Heads, Segments, SharedPrefixes
from penstock.engine.ops.portable import PortableKernels
from penstock.engine.shared_prefix import PrefixFinder

NATIVE = native.load_native()
PORTABLE = PortableKernels()
both = pytest.mark.parametrize("kernels", [NATIVE, PORTABLE], ids=lambda kernels: kernels.name)


@st.composite
def families(draw):
    """Groups of sequences with blocks in common, and some that share nothing."""
    kv_heads = draw(st.integers(1, 3))
    heads = Heads(kv_heads * draw(st.sampled_from([1, 3, 11])), kv_heads, draw(st.sampled_from([2, 16, 24, 64, 128])))
    group = st.tuples(st.integers(1, 9), st.lists(st.integers(1, 40), min_size=1, max_size=12))
    return {
        "block_tokens": draw(st.sampled_from([1, 3, 16, 24])),
        "heads": heads,
        "groups": draw(st.lists(group, min_size=1, max_size=3)),
        "alone": draw(st.lists(st.integers(1, 70), max_size=2)),
        "chunk": draw(st.none() | st.integers(2, 40)),
        "softcap": draw(st.none() | st.just(2.0)),
        "seed": draw(st.integers(0, 2**31)),
    }


def lay_out(case, dtype=torch.float32):
    """qkv, pool and segments with `prefixes`; what nobody owns holds NaN."""
    size, heads, chance = case["block_tokens"], case["heads"], random.Random(case["seed"])
    generator = torch.Generator().manual_seed(case["seed"])
    segments, groups, blocks = [], [], 0
    for shared, own in case["groups"]:
        stem = range(blocks, blocks + shared)
        blocks += shared
        groups.append((len(segments), len(segments) + len(own), shared))
        for tokens in own:
            rest = range(blocks, blocks + -(-tokens // size))
            blocks += len(rest)
            segments.append(([*stem, *rest], shared * size + tokens, 1))
    for tokens in case["alone"] + ([case["chunk"]] if case["chunk"] else []):
        rest = range(blocks, blocks + -(-tokens // size))
        blocks += len(rest)
        segments.append(([*rest], tokens, 1))
    if case["chunk"]:
        segments[-1] = (*segments[-1][:2], min(case["chunk"], 7))
    order = list(range(blocks + 2))
    chance.shuffle(order)
    pool = torch.full((blocks + 2, 2, 2, heads.kv, size, heads.width), float("nan"))
    tables = torch.full((len(segments), max(len(s[0]) for s in segments)), 2**30, dtype=torch.int32)
    for number, (table, length, _) in enumerate(segments):
        for position, block in enumerate(table):
            tables[number, position] = order[block]
            filled = min(size, length - position * size)
            if pool[order[block], 1, :, :, :filled].isnan().any():
                pool[order[block], 1, :, :, :filled] = torch.randn(
                    2, heads.kv, filled, heads.width, generator=generator
                )
    rows = [s[2] for s in segments]
    members = torch.cat([torch.randperm(b - a, generator=generator) + a for a, b, _ in groups])
    laid = Segments(
        first_row=torch.tensor([0, *np.cumsum(rows).tolist()], dtype=torch.int32),
        lengths=torch.tensor([s[1] for s in segments], dtype=torch.int32),
        table_rows=torch.arange(len(segments), dtype=torch.int32),
        tables=tables,
        longest_rows=max(rows),
        prefixes=SharedPrefixes(
            torch.tensor([0, *(b for _, b, _ in groups)], dtype=torch.int32),
            members.to(torch.int32),
            torch.tensor([shared for *_, shared in groups], dtype=torch.int32),
        ),
    )
    qkv = torch.randn(sum(rows), (heads.query + 2 * heads.kv) * heads.width, generator=generator)
    return qkv.to(dtype), pool.to(dtype), laid


def without(segments):
    return Segments(segments.first_row, segments.lengths, segments.table_rows, segments.tables, segments.longest_rows)


@both
@settings(max_examples=60, deadline=None)
@given(case=families())
def test_sharing_changes_nothing_but_rounding(kernels, case):
    qkv, pool, segments = lay_out(case)
    scale = case["heads"].width ** -0.5
    got = kernels.attention(qkv, case["heads"], pool, 1, segments, scale, None, case["softcap"])
    wanted = PORTABLE.attention(qkv, case["heads"], pool, 1, without(segments), scale, None, case["softcap"])
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@both
@settings(max_examples=10, deadline=None)
@given(case=families())
def test_sharing_in_bfloat16_is_within_its_rounding(kernels, case):
    qkv, pool, segments = lay_out(case, torch.bfloat16)
    got = kernels.attention(qkv, case["heads"], pool, 1, segments, 0.3, None, case["softcap"])
    wanted = PORTABLE.attention(
        qkv.float(), case["heads"], pool.float(), 1, without(segments), 0.3, None, case["softcap"]
    )
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), wanted, rtol=2e-2, atol=2e-2)


@both
def test_with_a_window_groups_are_left_alone(kernels):
    case = {"block_tokens": 4, "heads": Heads(4, 2, 16), "groups": [(5, [3, 9])], "alone": [], "chunk": None, "seed": 3}
    qkv, pool, segments = lay_out(case)
    got = kernels.attention(qkv, case["heads"], pool, 1, segments, 0.3, 7)
    wanted = PORTABLE.attention(qkv, case["heads"], pool, 1, without(segments), 0.3, 7)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@both
def test_more_heads_than_a_tile_has_queries_for_each_key(kernels):
    heads = Heads(71, 1, 16)
    case = {"block_tokens": 16, "heads": heads, "groups": [(5, [3, 40])], "alone": [9], "chunk": None, "seed": 3}
    qkv, pool, segments = lay_out(case)
    got = kernels.attention(qkv, heads, pool, 1, segments, 0.3, None)
    wanted = PORTABLE.attention(qkv, heads, pool, 1, without(segments), 0.3, None)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_a_nan_in_one_query_of_a_group_stays_with_it():
    case = {
        "block_tokens": 16,
        "heads": Heads(6, 2, 64),
        "groups": [(8, [3, 9, 30])],
        "alone": [],
        "chunk": None,
        "seed": 3,
    }
    qkv, pool, segments = lay_out(case)
    clean = NATIVE.attention(qkv, case["heads"], pool, 1, segments, 0.1, None)
    qkv[1, 0] = float("nan")
    broken = NATIVE.attention(qkv, case["heads"], pool, 1, segments, 0.1, None)
    assert broken[1, :64].isnan().all()
    assert torch.equal(broken[[0, 2]], clean[[0, 2]])


def found(tables, lengths, block_tokens=64):
    finder = PrefixFinder(block_tokens, worth_tokens=128)
    got = finder.find(np.arange(len(tables)), np.array(lengths), np.array(tables, np.int32), 0)
    if got is None:
        return []
    first, members = got.first.tolist(), got.members.tolist()
    return sorted((sorted(members[a:b]), n) for a, b, n in zip(first[:-1], first[1:], got.blocks.tolist(), strict=True))


def test_the_cut_that_saves_most_is_found():
    # All share block 1; the first three share three blocks: 2 * 3 blocks saved against 4 * 1.
    tables = [[1, 2, 3, 9, 0], [1, 2, 3, 8, 0], [1, 2, 3, 7, 0], [1, 5, 0, 0, 0], [1, 6, 0, 0, 0]]
    assert found(tables, [4 * 64] * 3 + [2 * 64] * 2) == [([0, 1, 2], 3)]
    # Five members that share two blocks save more than two pairs of them with three.
    tables = [[1, 2, 3, 10], [1, 2, 3, 11], [1, 2, 4, 12], [1, 2, 4, 13], [1, 2, 5, 14]]
    assert found(tables, [4 * 64] * 5) == [([0, 1, 2, 3, 4], 2)]


def test_the_block_that_is_being_written_is_nobodys_prefix():
    assert found([[1, 2], [1, 2]], [2 * 64, 2 * 64]) == []
    assert found([[1, 2, 3], [1, 2, 4]], [2 * 64 + 1, 2 * 64 + 1]) == [([0, 1], 2)]


def test_what_saves_little_is_no_group():
    assert found([[1, 2], [1, 3]], [2 * 64, 2 * 64]) == []
    assert found([[1, 2], [3, 4]], [2 * 64, 2 * 64]) == []


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_groups_share_what_they_say_and_no_segment_is_in_two(data):
    count, width = data.draw(st.integers(1, 12)), 8
    tables = np.zeros((count, width), np.int32)
    fresh = 1
    for row in range(count):
        parent = data.draw(st.integers(0, row)) if row else 0
        depth = data.draw(st.integers(0, width)) if row else 0
        tables[row, :depth] = tables[parent, :depth]
        tables[row, depth:] = range(fresh, fresh + width - depth)
        fresh += width
    lengths = [data.draw(st.integers(1, width * 64)) for _ in range(count)]
    seen: set[int] = set()
    for members, blocks in found(tables, lengths):
        assert len(members) > 1
        assert not seen & set(members)
        seen |= set(members)
        assert blocks >= 1
        assert (tables[members, :blocks] == tables[members[0], :blocks]).all()
        assert all(lengths[member] > blocks * 64 for member in members)


def test_finding_is_remembered_until_who_decodes_changes():
    finder = PrefixFinder(64, worth_tokens=128)
    tables = np.array([[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 3, 6]], np.int32)
    both_decode = finder.find(np.array([0, 1]), np.array([200, 200]), tables, 2)
    assert both_decode is not None
    assert finder.find(np.array([0, 1]), np.array([201, 201]), tables, 2) is both_decode
    three = finder.find(np.array([0, 1, 2]), np.array([202, 202, 202]), tables, 3)
    assert three is not None
    assert three.members.tolist() == [0, 1, 2]
    tables[1] = [7, 8, 9, 10]
    assert finder.find(np.array([0, 1]), np.array([202, 202]), tables, 4) is None


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "gemma2"])
def test_greedy_output_with_a_shared_prefix_equals_transformers(family, checkpoint, expected, monkeypatch):
    path = checkpoint(family)
    stem = [7, 3, 200, 41, 5, 99, 12, 64, 8, 31, 77, 2]
    prompts = [[*stem, *own] for own in ([9, 4], [33], [180, 6, 2, 71, 14])] + [[20, 21, 22]]
    engine = Engine(load_model(path), blocks=64, block_tokens=4, max_seqs=4)
    monkeypatch.setattr(engine, "_prefixes", PrefixFinder(4, worth_tokens=8))
    seen = []
    find = engine._prefixes.find
    monkeypatch.setattr(engine._prefixes, "find", lambda *a: seen.append(find(*a)) or seen[-1])
    driver = Driver(engine, 64, 4)
    for number, prompt in enumerate(prompts):
        driver.add(str(number), prompt, 8)
        step = Step(0)
        # The first three blocks hold the stem, which the first request computes.
        driver.admit(step, str(number), driver.tables["0"][:3] if 0 < number < 3 else ())
        driver.chunk(step, str(number))
        driver.run(step)
    step = Step(0)
    for number in range(4):
        driver.join(step, str(number))
    driver.decode(step)
    driver.run(step)
    driver.decode_until_done()
    assert [driver.output[str(n)] for n in range(4)] == expected(path, prompts, 8)
    assert any(one is not None and one.members.tolist() == [0, 1, 2] and one.blocks.tolist() == [3] for one in seen)

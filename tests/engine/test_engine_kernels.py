"""The operators: native and portable against each other, and attention against a dense reference in float64."""

from __future__ import annotations

import logging
import math
import os
import shutil
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.engine.ops import build, native
from penstock.engine.ops import kernels as interface
from penstock.engine.ops.kernels import Heads, QkNorm, Segments, kernels_for
from penstock.engine.ops.portable import PortableKernels

NATIVE = native.load_native()
PORTABLE = PortableKernels()
both = pytest.mark.parametrize("kernels", [NATIVE, PORTABLE], ids=lambda kernels: kernels.name)
WIDTHS = [2, 8, 16, 24, 32, 64, 80, 128]
"""Of heads: those with code of their own (16, 32, 64, 128), and others."""


def forget() -> None:
    """Make the next load find or build the library anew."""
    native.load_native.cache_clear()
    build.load_library.cache_clear()


@st.composite
def ragged(draw):
    """A pool, tables in it, and some sequences of which the last few tokens are this step's rows."""
    block_tokens = draw(st.sampled_from([1, 3, 8, 16, 24]))
    kv_heads = draw(st.integers(1, 3))
    heads = Heads(kv_heads * draw(st.sampled_from([1, 2, 5])), kv_heads, draw(st.sampled_from(WIDTHS)))
    lengths = draw(st.lists(st.integers(1, 70), min_size=1, max_size=4))
    decode = draw(st.booleans())
    rows = [1 if decode else draw(st.integers(1, length)) for length in lengths]
    window = draw(st.none() | st.integers(1, 80))
    return block_tokens, heads, lengths, rows, window, draw(st.integers(0, 2**31))


def lay_out(case, dtype=torch.float32):
    block_tokens, heads, lengths, rows, window, seed = case
    generator = torch.Generator().manual_seed(seed)
    blocks_of = [-(-length // block_tokens) for length in lengths]
    blocks = sum(blocks_of) + 3
    # What no sequence owns is poison: reading it would show.
    pool = torch.full((blocks, 2, 2, heads.kv, block_tokens, heads.width), float("nan"))
    order = torch.randperm(blocks, generator=generator).tolist()
    tables = torch.full((len(lengths) + 2, max(blocks_of) + 1), 2**30, dtype=torch.int32)
    dense, first = [], 0
    slots = torch.randperm(len(lengths) + 2, generator=generator)[: len(lengths)]
    for s, length in enumerate(lengths):
        mine = order[first : first + blocks_of[s]]
        first += blocks_of[s]
        tables[slots[s], : blocks_of[s]] = torch.tensor(mine, dtype=torch.int32)
        kv = torch.randn(2, heads.kv, length, heads.width, generator=generator).to(dtype)
        dense.append(kv)
        for t in range(length):
            pool[mine[t // block_tokens], 1, :, :, t % block_tokens] = kv[:, :, t]
    qkv = torch.randn(sum(rows), (heads.query + 2 * heads.kv) * heads.width, generator=generator).to(dtype)
    segments = Segments(
        first_row=torch.tensor([0, *torch.tensor(rows).cumsum(0).tolist()], dtype=torch.int32),
        lengths=torch.tensor(lengths, dtype=torch.int32),
        table_rows=slots.to(torch.int32),
        tables=tables,
        longest_rows=max(rows),
    )
    return qkv, heads, pool.to(dtype), segments, dense, window


def dense_attention(qkv, heads, segments, dense, window, scale, softcap=None):
    """The definition, row by row in float64."""
    queries = qkv[:, : heads.query * heads.width].view(-1, heads.query, heads.width).double()
    out = torch.zeros(len(qkv), heads.query, heads.width, dtype=torch.float64)
    bounds = segments.first_row.tolist()
    for s, kv in enumerate(dense):
        for row in range(bounds[s], bounds[s + 1]):
            position = kv.shape[2] - (bounds[s + 1] - row)
            first = max(0, position - window + 1) if window else 0
            for head in range(heads.query):
                keys, values = kv[:, head // (heads.query // heads.kv), first : position + 1].double()
                scores = keys @ queries[row, head] * scale
                if softcap is not None:
                    scores = softcap * torch.tanh(scores / softcap)
                out[row, head] = torch.softmax(scores, 0) @ values
    return out.view(len(qkv), -1)


@both
@settings(max_examples=60, deadline=None)
@given(case=ragged())
def test_attention_is_what_its_definition_says_and_reads_nothing_else(kernels, case):
    qkv, heads, pool, segments, dense, window = lay_out(case)
    scale = heads.width**-0.5
    got = kernels.attention(qkv, heads, pool, 1, segments, scale, window)
    torch.testing.assert_close(
        got.double(), dense_attention(qkv, heads, segments, dense, window, scale), rtol=1e-5, atol=1e-5
    )


@both
@settings(max_examples=30, deadline=None)
@given(case=ragged(), softcap=st.sampled_from([0.5, 3.0, 50.0]), size=st.sampled_from([1.0, 30.0]))
def test_capped_scores_are_what_the_definition_says(kernels, case, softcap, size):
    qkv, heads, pool, segments, dense, window = lay_out(case)
    qkv *= size
    got = kernels.attention(qkv, heads, pool, 1, segments, 0.3, window, softcap)
    wanted = dense_attention(qkv, heads, segments, dense, window, 0.3, softcap)
    torch.testing.assert_close(got.double(), wanted, rtol=2e-5, atol=2e-5)


@both
@settings(max_examples=20, deadline=None)
@given(case=ragged())
def test_attention_in_bfloat16_is_within_its_rounding(kernels, case):
    qkv, heads, pool, segments, dense, window = lay_out(case, torch.bfloat16)
    got = kernels.attention(qkv, heads, pool, 1, segments, 0.5, window)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(
        got.double(), dense_attention(qkv, heads, segments, dense, window, 0.5), rtol=2e-2, atol=2e-2
    )


def test_attention_of_long_sequences_on_several_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        case = (16, Heads(4, 2, 32), [900, 1, 333, 64], [300, 1, 333, 1], None, 5)
        qkv, heads, pool, segments, _, window = lay_out(case)
        got = NATIVE.attention(qkv, heads, pool, 1, segments, 0.2, window)
        wanted = PORTABLE.attention(qkv, heads, pool, 1, segments, 0.2, window)
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
        # One thread or two, the same bits: no sum is split between threads.
        torch.set_num_threads(1)
        assert torch.equal(got, NATIVE.attention(qkv, heads, pool, 1, segments, 0.2, window))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("block_tokens", [5, 16, 100, 1024])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_a_few_queries_against_as_many_tokens_as_a_part_has_and_one_more(block_tokens, softcap):
    lengths = [767, 768, 1279, 1280, 300]
    case = (block_tokens, Heads(6, 2, 64), lengths, [1, 1, 1, 3, 2], None, 7)
    qkv, heads, pool, segments, dense, _ = lay_out(case)
    got = NATIVE.attention(qkv, heads, pool, 1, segments, 0.125, None, softcap)
    wanted = dense_attention(qkv, heads, segments, dense, None, 0.125, softcap)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("rows", "heads"), [(49, Heads(1, 1, 16)), (52, Heads(2, 2, 64)), (29, Heads(2, 1, 32))])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_the_last_few_queries_of_a_prompt_against_all_before_them(rows, heads, softcap):
    """They are what is left over of whole tiles: 1, 4 and 10 of them, whose context is not cut into parts."""
    case = (16, heads, [840, 1300, 9000], [rows] * 3, None, 5)
    qkv, heads, pool, segments, dense, _ = lay_out(case)
    got = NATIVE.attention(qkv, heads, pool, 1, segments, 0.125, None, softcap)
    wanted = dense_attention(qkv, heads, segments, dense, None, 0.125, softcap)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)


@both
def test_large_scores_do_not_overflow_and_a_nan_stays_in_its_row(kernels):
    case = (8, Heads(2, 1, 16), [40, 40], [1, 1], None, 1)
    qkv, heads, pool, segments, dense, _ = lay_out(case)
    qkv *= 1000
    got = kernels.attention(qkv, heads, pool, 1, segments, 1.0, None)
    torch.testing.assert_close(
        got.double(), dense_attention(qkv, heads, segments, dense, None, 1.0), rtol=1e-3, atol=1e-3
    )
    qkv[0, 0] = float("nan")
    broken = kernels.attention(qkv, heads, pool, 1, segments, 1.0, None)
    assert broken[0, :16].isnan().all()
    assert torch.equal(broken[1], got[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 40),
    heads=st.sampled_from([Heads(4, 2, 16), Heads(3, 3, 10), Heads(8, 1, 64)]),
    turned=st.booleans(),
    normed=st.booleans(),
    partly=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_rotate_and_store_agree(dtype, rows, heads, turned, normed, partly, seed):
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(rows, (heads.query + 2 * heads.kv) * heads.width, generator=generator).to(dtype)
    angle = torch.randn(rows, heads.width // (5 if partly else 2), generator=generator) * 10
    angles = (angle.cos(), angle.sin()) if turned else None
    weights = [torch.randn(heads.width, generator=generator).to(dtype) for _ in "qk"]
    norm = QkNorm(weights[0], weights[1], 1e-6) if normed else None
    kv_index = torch.randperm(7 * 8, generator=generator)[:rows]
    results = []
    for kernels in (NATIVE, PORTABLE):
        pool, mine = torch.zeros(7, 2, 2, heads.kv, 8, heads.width, dtype=dtype), qkv.clone()
        kernels.rotate_and_store(mine, heads, angles, norm, pool, 1, kv_index)
        results.append((mine[:, : heads.query * heads.width], pool))
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 30), width=st.integers(1, 300), residual=st.booleans(), seed=st.integers(0, 2**31))
def test_add_rms_norm_and_silu_mul_agree(dtype, rows, width, residual, seed):
    generator = torch.Generator().manual_seed(seed)
    x, delta = torch.randn(2, rows, width, generator=generator).to(dtype)
    weight = torch.randn(width, generator=generator).to(dtype)
    gate_up = (torch.randn(rows, 2 * width, generator=generator) * 20).to(dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    results = []
    for kernels in (NATIVE, PORTABLE):
        mine = x.clone()
        out = kernels.add_rms_norm(mine, delta if residual else None, weight, 1e-6)
        results.append((mine, out, kernels.silu_mul(gate_up)))
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 10),
    inputs=st.integers(1, 70) | st.just(256),
    outputs=st.integers(1, 70),
    biased=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_few_rows_times_a_matrix_agree(dtype, rows, inputs, outputs, biased, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, generator=generator).to(dtype)
    weight = torch.randn(outputs, inputs, generator=generator).to(dtype)
    bias = torch.randn(outputs, generator=generator).to(dtype) if biased else None
    tolerance = 1e-4 if dtype == torch.float32 else 1e-1
    wanted = PORTABLE.linear(x.double(), weight.double(), None if bias is None else bias.double()).to(dtype)
    torch.testing.assert_close(NATIVE.linear(x, weight, bias), wanted, rtol=tolerance, atol=tolerance)


def test_silu_is_right_far_from_zero():
    gate = torch.tensor([[-1000.0, -90.0, -5.0, 0.0, 5.0, 90.0, 1000.0, math.inf, math.nan]])
    got = NATIVE.silu_mul(torch.cat([gate, torch.ones_like(gate)], dim=1))
    torch.testing.assert_close(got, torch.nn.functional.silu(gate), rtol=1e-6, atol=1e-30, equal_nan=True)


def test_native_kernels_share_torchs_openmp_runtime():
    program = (
        "import torch; from penstock.engine.ops.native import load_native; kernels = load_native();"
        "torch.set_num_threads(3); assert kernels.max_threads() == 3;"
        "loaded = {line.split()[-1] for line in open('/proc/self/maps') if 'omp' in line.split('/')[-1]};"
        "assert len(loaded) == 1, loaded"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_a_compiler_the_portable_kernels_serve_and_say_so_once(monkeypatch, caplog):
    forget()
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    monkeypatch.setattr(interface, "_warned", False)
    try:
        with caplog.at_level(logging.WARNING):
            assert kernels_for(torch.device("cpu")).name == "portable"
            assert kernels_for(torch.device("cpu")).name == "portable"
        assert len(caplog.records) == 1
        assert "install gcc or clang" in caplog.text
    finally:
        forget()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The library, compiled just now into a cache directory of its own: ten seconds, so all tests share it."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as here:
        here.setenv("XDG_CACHE_HOME", str(cache))
        forget()
        try:
            native.load_native()
        finally:
            forget()
    (library,) = (cache / "penstock" / "kernels").iterdir()
    return library


COPY_INSTEAD_OF_COMPILING = (
    "import os, shutil, sys; from penstock.engine.ops import build; from penstock.engine.ops.native import load_native;"
    "build._compile = lambda *asked: shutil.copy(sys.argv[1], asked[-1]);"
)


def test_compiled_code_is_kept_private_and_found_again(monkeypatch, tmp_path, compiled):
    assert compiled.parent.stat().st_mode & 0o777 == 0o700
    shutil.copytree(compiled.parents[2], tmp_path, dirs_exist_ok=True)
    (library,) = (tmp_path / "penstock" / "kernels").iterdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "_compile", lambda *asked: pytest.fail("it is there"))
    try:
        forget()
        native.load_native()
        # Nor must it be writable: an image may bring what it needs.
        allowed = os.access
        monkeypatch.setattr(
            build.os, "access", lambda path, mode: not str(path).startswith(str(tmp_path)) and allowed(path, mode)
        )
        forget()
        native.load_native()
        # A directory others can write to is not trusted: the kernels are built elsewhere.
        library.unlink()
        library.parent.chmod(0o777)
        monkeypatch.setattr(build, "_compile", lambda *asked: shutil.copy(compiled, asked[-1]))
        forget()
        native.load_native()
        assert os.listdir(library.parent) == []
    finally:
        forget()


@pytest.mark.parametrize("left", [0.0, 0.5])
def test_a_damaged_library_is_compiled_again_rather_than_loaded(left, tmp_path, compiled):
    kept = tmp_path / "penstock" / "kernels"
    kept.mkdir(parents=True, mode=0o700)
    (kept / compiled.name).write_bytes(compiled.read_bytes()[: int(compiled.stat().st_size * left)])
    # In a process of its own: loading half a library ends the process.
    program = f"{COPY_INSTEAD_OF_COMPILING} assert load_native().name == 'native'"
    done = subprocess.run(
        [sys.executable, "-c", program, str(compiled)], capture_output=True, text=True, check=False,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (again,) = kept.iterdir()
    assert again.read_bytes() == compiled.read_bytes()


def test_where_nothing_can_be_kept_nothing_is_left_behind_by_a_process_that_exits_at_once(tmp_path, compiled):
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    home.write_text("a file, so that no directory can be made in it")
    temporary.mkdir()
    program = f"{COPY_INSTEAD_OF_COMPILING} assert load_native().max_threads() > 0; os._exit(7)"
    done = subprocess.run(
        [sys.executable, "-c", program, str(compiled)], capture_output=True, text=True, check=False,
        env={**os.environ, "XDG_CACHE_HOME": str(home), "TMPDIR": str(temporary)},
    )  # fmt: skip
    assert done.returncode == 7, done.stderr
    assert list(temporary.iterdir()) == []

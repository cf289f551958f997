"""The engine of a GPU on the CPU: the same tokens as the plain engine, whatever is launched before it is read."""

from __future__ import annotations

import sys
import time

import numpy as np
import pytest
import torch

from penstock.control.policy import build_replica
from penstock.control.request import Request, Sampling
from penstock.control.step import Failed, Finished, NewTokens
from penstock.engine import graphs as graphs_module
from penstock.engine.device_engine import DeviceEngine, engine_for
from penstock.engine.engine import Engine
from penstock.engine.loader import load_model
from penstock.engine.ops import kernels as interface
from penstock.engine.ops.kernels import Segments, kernels_for
from penstock.engine.ops.portable import PortableKernels
from penstock.engine.shared_prefix import PrefixFinder
from penstock.engine.staging import Staging
from penstock.errors import ProtocolError
from penstock.runtime.local import Loop

BLOCKS, BLOCK_TOKENS = 40, 4


class PlacedKernels(PortableKernels):
    """Reads segments where a GPU does."""

    def attention(self, qkv, heads, pool, layer, segments, scale, window, softcap=None):
        placed = segments.placed
        assert placed is not None
        assert (placed.lengths[: placed.decodes] > 0).all()
        here = Segments(placed.first_row, placed.lengths, placed.table_rows, placed.tables, placed.longest_rows)
        return super().attention(qkv, heads, pool, layer, here, scale, window, softcap)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(config).save_pretrained(path)
    return load_model(path)


def requests(count=24, seed=0, stop=True, demanding=()):
    draw = np.random.default_rng(seed)
    return [
        Request(
            id=f"r{number}", prompt=tuple(draw.integers(0, 64, draw.integers(1, 30)).tolist()),
            max_tokens=int(draw.integers(1, 25)),
            sampling=Sampling(
                temperature=0.7 if number in demanding else 0.0, seed=5,
                stop_ids=(3, 9, 20, 41) if stop and number % 2 else (),
            ),
        )
        for number in range(count)
    ]  # fmt: skip


def serve(engine, requests, *, max_seqs=8, budget=24, evict="recompute", host_blocks=0, cancel=None):
    """Tokens and finish reasons of requests through the real control plane; `cancel`: an id and after which turn."""
    replica = build_replica(
        blocks=BLOCKS, block_tokens=BLOCK_TOKENS, max_sequence_tokens=100, token_budget=budget, max_seqs=max_seqs,
        host_blocks=host_blocks, evict=evict,
    )  # fmt: skip
    loop = Loop(replica, engine, clock=time.monotonic)
    for request in requests:
        loop.submit(request)
    tokens = {request.id: [] for request in requests}
    reasons = {}
    for number, turn in enumerate(loop.run()):
        for update in turn.updates:
            match update:
                case NewTokens():
                    for request_id, token in update.tokens.items():
                        tokens[request_id].append(token)
                case Finished():
                    reasons[update.id] = (update.reason, update.stop_id)
                case Failed():
                    reasons[update.id] = update.why
        if cancel is not None and cancel[1] == number:
            loop.cancel(cancel[0])
        engine.check()
    replica.check()
    return tokens, reasons, replica.statistics()


def engines(model, graphs=None, **sizes):
    given = {"blocks": BLOCKS, "block_tokens": BLOCK_TOKENS, "max_seqs": 8, **sizes}
    return Engine(model, **given), DeviceEngine(model, kernels=PlacedKernels(), graphs=graphs, **given)


@pytest.mark.parametrize("graphs", [False, True])
def test_the_same_tokens_as_the_plain_engine_with_stops_ends_and_evictions(model, graphs):
    plain, device = engines(model, graphs)
    wanted, got = serve(plain, requests()), serve(device, requests())
    assert got[:2] == wanted[:2]
    assert wanted[2].preemptions > 0
    assert {reason for reason, _ in wanted[1].values()} == {"stop", "length"}
    assert device.statistics()["sequences"] <= 8
    if graphs:
        assert len(device._graphs) > 2


def test_a_request_that_chooses_by_chance_is_served_beside_others_and_changes_nothing(model):
    plain, device = engines(model, graphs=True)
    some = requests(demanding=(4, 11))
    assert serve(device, some)[:2] == serve(plain, some)[:2]


def test_swapped_and_cancelled_sequences(model):
    plain, device = engines(model, host_blocks=30, graphs=True)
    some = requests(seed=2)
    wanted = serve(plain, some, evict="swap", host_blocks=30)
    got = serve(device, some, evict="swap", host_blocks=30)
    assert got[:2] == wanted[:2]
    assert wanted[2].swaps > 0
    plain, device = engines(model, graphs=True)
    (wanted, _, _), (got, reasons, _) = serve(plain, some), serve(device, some, cancel=("r2", 4))
    assert reasons["r2"][0] == "cancelled"
    cut = got.pop("r2")
    assert cut == wanted.pop("r2")[: len(cut)]
    assert got == wanted


def test_steps_are_begun_before_the_one_before_is_read(model):
    _, device = engines(model)
    seen = []
    launch, finish = device._launch, device._finish
    device._launch = lambda step: seen.append(("launch", step.number)) or launch(step)
    device._finish = lambda begun: seen.append(("finish", begun.number)) or finish(begun)
    serve(device, requests(count=3, stop=False))
    assert seen[:4] == [("launch", 1), ("launch", 2), ("finish", 1), ("launch", 3)]


def test_a_sequence_whose_logits_are_no_numbers_fails_alone(model):
    plain, device = engines(model)
    poisoned = Request(id="bad", prompt=(63,) * 5, max_tokens=8, sampling=Sampling(temperature=0.0))
    embedding = model.model._embedding
    kept = embedding[63].clone()
    clean = [replace_tokens(request) for request in requests(count=4, stop=False)]
    wanted = serve(plain, clean)
    with torch.inference_mode():
        embedding[63] = float("nan")
        try:
            got = serve(device, [*clean, poisoned])
        finally:
            embedding[63] = kept
    assert got[1].pop("bad") == "the model's logits are not finite numbers"
    assert got[0].pop("bad") == []
    assert got[:2] == wanted[:2]


def replace_tokens(request):
    return Request(
        id=request.id, prompt=tuple(token % 60 for token in request.prompt), max_tokens=request.max_tokens,
        sampling=request.sampling,
    )  # fmt: skip


def test_steps_run_in_order(model):
    _, device = engines(model)
    replica = build_replica(blocks=BLOCKS, block_tokens=BLOCK_TOKENS, max_sequence_tokens=100, max_seqs=8)
    request = requests(count=1)[0]
    device.add(request)
    replica.submit(request, 0.0)
    first, second = replica.plan(0.0), replica.plan(0.0)
    device.begin(first)
    with pytest.raises(ProtocolError, match="begun before it"):
        device.run(second)


class PrefixKernels(PlacedKernels):
    """Looks whether what decodes are said to share is what their tables share."""

    def __init__(self):
        self.shared = []

    def prefix_arrays(self, prefixes, lengths, table_rows, heads, dtype, block_tokens, decodes):
        members = prefixes.members.numpy().astype(np.int32)
        tokens = int(prefixes.blocks[0]) * block_tokens
        skips = np.zeros(len(lengths), np.int32)
        skips[members] = tokens
        return {
            "tiles": np.array([[0, len(members), table_rows[members[0]], tokens]], np.int32),
            "members": members,
            "skips": skips,
        }

    def attention(self, qkv, heads, pool, layer, segments, scale, window, softcap=None):
        if (prefixes := segments.placed.prefixes) is not None:
            ((first, count, row, tokens),) = prefixes.tiles.tolist()
            blocks = segments.placed.tables[:, : tokens // BLOCK_TOKENS]
            for member in prefixes.members[first : first + count].tolist():
                assert torch.equal(blocks[segments.placed.table_rows[member]], blocks[row])
                assert prefixes.skips[member] == tokens
            self.shared.append(count)
        return super().attention(qkv, heads, pool, layer, segments, scale, window, softcap)


def test_what_decodes_have_in_common_is_placed_beside_them(model):
    some = [
        Request(id=f"r{number}", prompt=(*range(1, 33), 40 + number, number + 1), max_tokens=9 if number else 1,
                sampling=Sampling(temperature=0.0))
        for number in range(12)
    ]  # fmt: skip
    plain, _ = engines(model)
    kernels = PrefixKernels()
    device = DeviceEngine(model, blocks=BLOCKS, block_tokens=BLOCK_TOKENS, max_seqs=8, kernels=kernels, graphs=True)
    device._prefixes = PrefixFinder(BLOCK_TOKENS, worth_tokens=128)
    wanted, got = serve(plain, some, budget=40), serve(device, some, budget=40)
    assert got[:2] == wanted[:2]
    assert max(kernels.shared) >= 5


def test_graphs_are_made_ahead_and_found_again(model):
    _, device = engines(model, graphs=True)
    made = device.warm_up(longest=64)
    assert made == sum(1 for size in graphs_module.SIZES if size <= 8)
    _, reasons, _ = serve(device, requests())
    assert {reason[0] for reason in reasons.values()} == {"stop", "length"}
    assert len(device._graphs) == made


@pytest.mark.parametrize("missing", [True, False], ids=["Triton is not installed", "the GPU is too old"])
def test_without_triton_kernels_the_portable_ones_serve_and_say_why_once(monkeypatch, caplog, missing):
    monkeypatch.setattr(interface, "_warned", False)
    if missing:
        monkeypatch.setitem(sys.modules, "penstock.engine.ops.triton.kernels", None)
    else:
        triton = pytest.importorskip("penstock.engine.ops.triton.kernels", reason="Triton is not installed")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
        assert triton.unavailable(torch.device("cuda")) == "compute capability 7.5, and 8.0 is needed"
    for _ in range(2):
        assert kernels_for(torch.device("cuda")).name == "portable"
    assert len(caplog.records) == 1
    assert ("penstock[cuda]" if missing else "compute capability 7.5") in caplog.text


def test_graphs_are_made_for_each_number_of_parts(model):
    kernels = PlacedKernels()
    kernels.splits = lambda programs, longest: max(1, longest // 32 // programs)
    device = DeviceEngine(model, blocks=200, block_tokens=BLOCK_TOKENS, max_seqs=4, kernels=kernels, graphs=True)
    # One, two and four rows of two KV heads, of up to 256 and 512 tokens: 4 and 8 parts, 2 and 4, 1 and 2.
    assert device.warm_up(longest=512) == 6


def test_the_engine_of_a_device():
    assert engine_for("cpu") is Engine
    assert engine_for("cuda:1") is DeviceEngine


def test_arrays_go_over_in_one_piece_and_keep_their_shapes():
    staging = Staging(torch.device("cpu"), buffers=2)
    draw = np.random.default_rng(1)
    for size in (3, 50_000, 7):
        arrays = {
            "a": draw.integers(-5, 5, size),
            "b": draw.integers(0, 9, (2, size)).astype(np.int32),
            "none": np.zeros(0, np.int64),
            "c": draw.integers(0, 9, (size, 4)).astype(np.int32)[:, ::2],
        }
        into = torch.full((staging.size(arrays) + 5,), 77, dtype=torch.uint8)
        for sent in (staging.send(arrays), staging.send(arrays, into)):
            for name, array in arrays.items():
                assert np.array_equal(sent[name].numpy(), array)
        assert into[-5:].tolist() == [77] * 5

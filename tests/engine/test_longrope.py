"""Phi-3's LongRoPE: short sequences turn by the short factors, long ones by the long ones, and what grows beyond the
original length is computed anew, as `transformers` does it: token for token the same."""

from __future__ import annotations

import random

import pytest
from engine_driver import Driver, reference

from penstock.control.request import Request, Sampling
from penstock.control.step import Failed, Finished, NewTokens, Step
from penstock.engine.engine import Engine
from penstock.errors import InvalidRequest
from penstock.runtime.build import Built
from penstock.runtime.legs import Legs
from penstock.runtime.local import Loop
from penstock.runtime.offline import run
from penstock.testing import small_replica

ORIGINAL = 24
TOKENS = 14
_random = random.Random(3)
STEM = [_random.randrange(2, 256) for _ in range(9)]
LENGTHS = (5, 10, 11, 12, 20, 24, 25, 40)
"""With 14 more tokens: below, up to, one beyond, across, and beyond from the start."""
PROMPTS = [(STEM + [_random.randrange(2, 256) for _ in range(64)])[:length] for length in LENGTHS]
ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.5, 3.0, 6.0, 12.0],
    "partial_rotary_factor": 0.5,
}


@pytest.fixture(scope="module")
def path(checkpoint):
    return checkpoint(
        "phi3", original_max_position_embeddings=ORIGINAL, max_position_embeddings=96, rope_parameters=ROPE
    )


@pytest.fixture(scope="module")
def wanted(path):
    return reference(path, PROMPTS, TOKENS)


@pytest.fixture(scope="module", name="checkpoint")
def _checkpoint(tmp_path_factory):
    from penstock.testing import tiny_checkpoint

    return lambda family, **options: tiny_checkpoint(family, tmp_path_factory.mktemp(family), **options)


@pytest.mark.parametrize("memory", ["prefix_tree", "paged"])
@pytest.mark.parametrize(("blocks", "budget"), [(200, 400), (200, 12), (26, 24)])
def test_below_across_and_beyond_the_original_length(memory, blocks, budget, path, wanted):
    engine = Engine.load(path, blocks=blocks, block_tokens=4, max_seqs=8)
    assert engine.recompute_beyond == ORIGINAL
    replica = small_replica(blocks=blocks, block_tokens=4, memory=memory, token_budget=budget)
    built = Built(replica, engine, None, plan_ahead=True, recompute_beyond=engine.recompute_beyond)
    for wave in range(2):
        requests = [
            Request(id=f"{wave}-{n}", prompt=tuple(p), max_tokens=TOKENS, sampling=Sampling(temperature=0.0))
            for n, p in enumerate(PROMPTS)
        ]
        results = run(built, requests)
        assert [one.tokens for one in results] == wanted
        assert {one.finished for one in results} == {"length"}
        assert [one.id for one in results] == [one.id for one in requests]
    engine.check()
    seen = replica.statistics()
    assert seen.held_blocks == 0
    if memory == "prefix_tree":
        assert seen.prefix_hit_tokens > 0
    if blocks == 26:
        assert seen.preemptions > 0


def test_a_crossing_request_that_comes_from_another_worker_goes_on(path, wanted):
    engine = Engine.load(path, blocks=200, block_tokens=4, max_seqs=8)
    built = Built(small_replica(blocks=200), engine, None, plan_ahead=True, recompute_beyond=ORIGINAL)
    for made in (1, 3, 4, 5, 9):
        one = Request(
            id=f"m{made}", prompt=tuple(PROMPTS[4]), max_tokens=TOKENS, output=tuple(wanted[4][:made]),
            sampling=Sampling(temperature=0.0),
        )  # fmt: skip
        (result,) = run(built, [one])
        assert result.tokens == wanted[4][made:]


def test_a_request_is_cancelled_on_either_side(path):
    engine = Engine.load(path, blocks=200, block_tokens=4, max_seqs=8)
    for steps in (2, 9):
        replica = small_replica(blocks=200)
        loop = Loop(replica, engine, clock=lambda: 0.0, plan_ahead=False, recompute_beyond=ORIGINAL)
        engine._last_step = None
        loop.submit(Request(id="c", prompt=tuple(PROMPTS[4]), max_tokens=TOKENS, sampling=Sampling(temperature=0.0)))
        for _ in range(steps):
            loop.turn()
        loop.cancel("c")
        ends = [update for turn in loop.run() for update in turn.updates] + loop.take_updates()
        assert [(end.id, end.reason) for end in ends] == [("c", "cancelled")]
        assert replica.statistics().held_blocks == 0


def test_the_engine_alone_takes_no_request_across(path):
    engine = Engine.load(path, blocks=200, block_tokens=4, max_seqs=8)
    with pytest.raises(InvalidRequest, match="max_tokens up to 5"):
        engine.add(Request(id="a", prompt=tuple(PROMPTS[4]), max_tokens=6))
    engine.add(Request(id="b", prompt=tuple(PROMPTS[4]), max_tokens=5))
    driver = Driver(engine, 200, 4)
    driver.add("long", PROMPTS[6], 4)
    driver.prefill("long", chunk_tokens=7)
    driver.run(Step(0, release=["b", "long"]))


def test_a_stop_before_the_length_ends_the_request_and_news_carry_its_own_id():
    legs = Legs(10)
    first = legs.begin(Request(id="r", prompt=(1,) * 8, max_tokens=9))
    assert (first.id, first.max_tokens, first.salt) == ("r", 3, "")

    assert legs.rest(Finished("r", "stop"), (1,)) is None
    legs.begin(Request(id="r", prompt=(1,) * 8, max_tokens=9))
    second = legs.rest(Finished("r", "length"), (4, 5, 6))
    assert second is not None
    assert (second.max_tokens, second.output) == (9, (4, 5, 6))
    assert second.id != "r"
    assert second.salt != ""
    assert legs.outward(NewTokens({second.id: 3, "x": 4}, {})) == NewTokens({"r": 3, "x": 4}, {})
    assert legs.outward(Finished(second.id, "stop", 7)) == Finished("r", "stop", 7)
    assert legs.outward(Failed(second.id, "no")) == Failed("r", "no")
    assert legs.begin(Request(id="n", prompt=(1,) * 8, max_tokens=3)).max_tokens == 3

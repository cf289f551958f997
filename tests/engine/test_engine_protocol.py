"""What a step may say and what a result must say back: the executor's side of control/step.py."""

from __future__ import annotations

import random

import pytest
from engine_driver import GREEDY, Driver
from safetensors.torch import load_file, save_file

from penstock.control.request import Request, Sampling
from penstock.control.step import Admission, Chunk, Step
from penstock.engine.engine import Engine
from penstock.errors import InvalidRequest, ProtocolError

_random = random.Random(3)
PROMPTS = [[_random.randrange(2, 256) for _ in range(length)] for length in (9, 20, 14)]


@pytest.fixture
def driver(checkpoint):
    return Driver(Engine.load(checkpoint("llama"), blocks=32, block_tokens=8, max_seqs=3), 32, 8)


def stopping_at(token):
    return Sampling(temperature=0.0, stop_ids=(token,))


def test_a_stop_id_ends_the_sequence_and_is_the_last_of_its_output(driver, checkpoint, expected):
    wanted = expected(checkpoint("llama"), PROMPTS[:1], 12)[0]
    stop = wanted[4]
    driver.add("a", PROMPTS[0], 12, sampling=stopping_at(stop))
    driver.prefill("a")
    step = Step(0)
    driver.join(step, "a")
    driver.decode(step)
    driver.run(step)
    driver.decode_until_done()
    finish = driver.finished["a"]
    assert (finish.reason, finish.stop_id) == ("stop", stop)
    assert list(finish.output) == wanted[: wanted.index(stop) + 1]


def test_a_step_planned_before_the_stop_was_known_gets_no_token_and_no_second_finish(driver, checkpoint, expected):
    wanted = expected(checkpoint("llama"), PROMPTS[:2], 12)
    stop = wanted[0][0]
    driver.add("a", PROMPTS[0], 12, sampling=stopping_at(stop))
    driver.add("b", PROMPTS[1], 12)
    driver.prefill("b")
    first = Step(0)
    driver.admit(first, "a")
    driver.chunk(first, "a")
    driver.run(first)
    assert driver.finished["a"].output == (stop,)
    # These were planned while the first ran: a joins, decodes, grows and is paused although it is complete.
    second = Step(0)
    driver.join(second, "b")
    second.join = [*second.join, "a"]
    second.grow = [*second.grow, "a"]
    second.grow_blocks = [*second.grow_blocks, driver.free.pop()]
    driver.decode(second)
    second.decoding = 2
    result = driver.run(second)
    assert result.tokens == {"b": wanted[1][1]}
    assert result.finished == {}
    third = Step(0, pause=["a"])
    driver.decode(third)
    assert driver.run(third).tokens == {"b": wanted[1][2]}
    fourth = Step(0, release=["a"])
    driver.decode(fourth)
    driver.run(fourth)
    driver.decode_until_done()
    assert driver.output["b"] == wanted[1]


def test_a_finished_sequence_that_a_late_step_evicts_and_admits_again_stays_silent(driver):
    driver.add("a", PROMPTS[0], 1)
    driver.prefill("a")
    assert driver.finished["a"].reason == "length"
    step = Step(0)
    driver.evict(step, "a")
    driver.run(step)
    step = Step(0)
    driver.admit(step, "a")
    driver.chunk(step, "a")
    result = driver.run(step)
    assert (result.tokens, result.finished) == ({}, {})
    driver.run(Step(0, release=["a"]))
    assert driver.engine.statistics()["sequences"] == 0


def test_a_sequence_that_was_never_admitted_can_be_released(driver):
    driver.add("a", PROMPTS[0], 4)
    driver.run(Step(0, release=["a"]))
    assert driver.engine.statistics()["sequences"] == 0
    with pytest.raises(ProtocolError, match="a"):
        driver.run(Step(0, release=["a"]))


def test_decodes_rest_in_a_step_that_does_not_decode(driver, checkpoint, expected):
    wanted = expected(checkpoint("llama"), PROMPTS[:2], 12)
    driver.add("a", PROMPTS[0], 12)
    driver.add("b", PROMPTS[1], 12)
    driver.prefill("a")
    step = Step(0)
    driver.join(step, "a")
    driver.admit(step, "b")
    driver.chunk(step, "b")
    result = driver.run(step)
    assert result.tokens == {"b": wanted[1][0]}
    driver.decode_until_done()
    assert driver.output["a"] == wanted[0]


def test_a_paused_sequence_keeps_its_blocks_and_goes_on_when_it_joins_again(driver, checkpoint, expected):
    wanted = expected(checkpoint("llama"), PROMPTS, 12)
    for i, prompt in enumerate(PROMPTS):
        driver.add(str(i), prompt, 12)
        driver.prefill(str(i))
    step = Step(0)
    for i in range(3):
        driver.join(step, str(i))
    driver.decode(step)
    driver.run(step)
    step = Step(0, pause=["0"])
    driver.decoding.remove("0")
    for _ in range(3):
        driver.decode(step)
        assert "0" not in driver.run(step).tokens
        step = Step(0)
    driver.join(step, "0")
    driver.decode(step)
    driver.run(step)
    driver.decode_until_done()
    assert [driver.output[str(i)] for i in range(3)] == wanted


def test_slots_of_released_sequences_serve_new_ones(driver, checkpoint, expected):
    wanted = expected(checkpoint("llama"), PROMPTS, 6)
    for turn in range(9):
        name = f"r{turn}"
        driver.add(name, PROMPTS[turn % 3], 6)
        driver.prefill(name)
        step = Step(0)
        driver.join(step, name)
        driver.decode(step)
        driver.run(step)
        driver.decode_until_done()
        step = Step(0, release=[name])
        driver.free[:0] = driver.tables.pop(name)
        driver.run(step)
        assert driver.output[name] == wanted[turn % 3]
    assert driver.engine.statistics() == {
        "sequences": 0,
        "slots_used": 0,
        "decoding": 0,
        "kv_bytes": driver.engine.statistics()["kv_bytes"],
    }


def test_a_sequence_whose_logits_are_not_numbers_fails_alone(checkpoint, expected, tmp_path):
    source = checkpoint("llama")
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.embed_tokens.weight"][250] = float("nan")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    # The poisoned id must not come up by itself.
    assert 250 not in PROMPTS[0]
    driver = Driver(Engine.load(tmp_path, blocks=32, block_tokens=8, max_seqs=3), 32, 8)
    driver.add("good", PROMPTS[0], 12)
    driver.add("bad", [5, 250, 7], 12)
    step = Step(0)
    for name in ("bad", "good"):
        driver.admit(step, name)
        driver.chunk(step, name)
    driver.run(step)
    assert list(driver.failed) == ["bad"]
    assert "not finite" in driver.failed["bad"]
    step = Step(0, join=["bad"])
    driver.join(step, "good")
    driver.decode(step)
    driver.run(step)
    driver.decode_until_done()
    wanted = expected(source, PROMPTS[:1], 12)[0]
    assert 250 not in wanted
    assert driver.output == {"good": wanted, "bad": []}


def test_penalties_count_the_output_of_a_resumed_and_of_an_evicted_request(driver):
    sampling = Sampling(temperature=0.0, repetition_penalty=1.3, frequency_penalty=0.7)
    driver.add("whole", PROMPTS[0], 12, sampling=sampling)
    driver.prefill("whole")
    step = Step(0)
    driver.join(step, "whole")
    driver.decode(step)
    driver.run(step)
    driver.decode_until_done()
    whole = driver.output["whole"]
    driver.add("resumed", PROMPTS[0], 12, output=tuple(whole[:5]), sampling=sampling)
    driver.prefill("resumed")
    step = Step(0)
    driver.join(step, "resumed")
    driver.decode(step)
    driver.run(step)
    step = Step(0)
    driver.evict(step, "resumed")
    driver.run(step)
    driver.prefill("resumed")
    step = Step(0)
    driver.join(step, "resumed")
    driver.decode(step)
    driver.run(step)
    driver.decode_until_done()
    assert driver.output["resumed"] == whole


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"prompt": ()}, "prompt"),
        ({"prompt": (1, 256)}, "prompt"),
        ({"prompt": (1, -1)}, "prompt"),
        ({"max_tokens": 3, "output": (1, 2, 3)}, "max_tokens"),
        ({"max_tokens": 257}, "max_tokens"),
        ({"sampling": Sampling(temperature=-1.0)}, "temperature"),
    ],
)
def test_a_request_that_cannot_be_run_is_refused_by_field_and_not_kept(driver, change, field):
    request = {"id": "a", "prompt": (1, 2), "max_tokens": 4, "sampling": GREEDY, **change}
    with pytest.raises(InvalidRequest) as refused:
        driver.engine.add(Request(**request))
    assert refused.value.field == field
    assert driver.engine.statistics()["sequences"] == 0


def test_an_id_that_is_running_is_refused(driver):
    driver.add("a", PROMPTS[0], 4)
    with pytest.raises(InvalidRequest, match="running"):
        driver.engine.add(Request(id="a", prompt=(1,), max_tokens=1))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"admit": [Admission("nobody", (0,), 0)]}, "nobody"),
        ({"admit": [Admission("a", (99, 0), 0)]}, "99"),
        ({"admit": [Admission("a", (0,) * 33, 0)]}, "33 blocks"),
        ({"chunks": [Chunk("a", 0, 9, True)]}, "blocks"),
        ({"admit": [Admission("a", (0,), 0)], "chunks": [Chunk("a", 0, 9, True)]}, "no block"),
        ({"admit": [Admission("a", (0, 1), 0)], "chunks": [Chunk("a", 0, 10, True)]}, "does not fit"),
        ({"admit": [Admission("a", (0, 1), 0)], "chunks": [Chunk("a", 0, 9, False)]}, "does not fit"),
        ({"join": ["a"], "decoding": 1}, "blocks"),
    ],
)
def test_a_step_that_breaks_the_contract_is_said_loudly(driver, change, words):
    driver.add("a", PROMPTS[0], 4)
    with pytest.raises(ProtocolError, match=words):
        driver.engine.run(Step(1, **change))


def test_steps_out_of_order_and_steps_too_large_are_refused(checkpoint):
    engine = Engine.load(checkpoint("llama"), blocks=8, block_tokens=8, max_seqs=1, max_step_tokens=8)
    engine.add(Request(id="a", prompt=tuple(PROMPTS[0]), max_tokens=1, sampling=GREEDY))
    with pytest.raises(ProtocolError, match="8 were agreed"):
        engine.run(Step(7, admit=[Admission("a", (0, 1), 0)], chunks=[Chunk("a", 0, 9, True)]))
    with pytest.raises(ProtocolError, match="after"):
        engine.run(Step(9))
    engine.close()
    engine.close()

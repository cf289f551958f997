"""Frames: what goes in comes out, however it is cut, and nothing else does."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.control.request import Request, Sampling
from penstock.control.statistics import Statistics
from penstock.control.step import Failed, Finished, TokenLogprobs
from penstock.errors import ProtocolError
from penstock.runtime import wire
from penstock.runtime.facts import ModelInfo, StepReport

tokens = st.integers(0, 2**31 - 1)
ids = st.text(max_size=40)
floats = st.floats(allow_nan=False, width=64)
samplings = st.builds(
    Sampling, temperature=floats, seed=st.none() | st.integers(-(2**63), 2**63 - 1),
    logprobs=st.none() | st.integers(0, 20), stop_ids=st.lists(tokens, max_size=4).map(tuple),
    logit_bias=st.lists(st.tuples(tokens, floats), max_size=3).map(tuple),
)  # fmt: skip
requests = st.builds(
    Request, id=ids, prompt=st.lists(tokens, max_size=50), max_tokens=st.integers(1, 10**6),
    output=st.lists(tokens, max_size=9).map(tuple), tenant=ids, salt=ids, adapter=ids, priority=st.integers(-9, 9),
    sampling=samplings,
)  # fmt: skip
logprobs = st.builds(TokenLogprobs, floats, st.lists(st.tuples(tokens, floats), max_size=3).map(tuple))
reasons = st.sampled_from(["stop", "length", "cancelled"])
reports = st.builds(StepReport, *[tokens], floats, floats, *[tokens] * 5)
to_worker = st.one_of(
    st.builds(wire.Start, st.dictionaries(ids, st.none() | st.integers(-5, 5) | ids, max_size=3)),
    st.builds(wire.Submit, requests),
    st.builds(wire.Cancel, ids),
    st.builds(wire.LoadAdapter, ids, ids, st.none() | ids),
    st.builds(wire.UnloadAdapter, ids),
)
from_worker = st.one_of(
    st.builds(wire.Phase, ids, floats, ids),
    st.builds(wire.Reading, tokens, tokens),
    st.builds(wire.Ready, st.builds(ModelInfo, *[ids] * 3, tokens, ids, *[tokens] * 6, ids)),
    st.builds(
        wire.Stepped, st.none() | reports, st.dictionaries(ids, tokens, max_size=3),
        st.dictionaries(ids, tokens, max_size=4), st.dictionaries(ids, logprobs, max_size=2),
        st.lists(st.builds(Finished, ids, reasons, st.none() | tokens, tokens)),
        st.lists(st.builds(Failed, ids, ids), max_size=2),
        statistics=st.none() | st.builds(Statistics, waiting=tokens, steps=tokens),
    ),
    st.builds(wire.AdapterLoaded, ids, tokens, tokens, ids),
    st.builds(wire.AdapterRefused, *[ids] * 5),
    st.builds(wire.AdapterGone, ids),
    st.builds(wire.Admitted, st.lists(ids, max_size=4)),
    st.builds(wire.Refused, *[ids] * 6),
    st.builds(wire.Failure, *[ids] * 6),
)  # fmt: skip


@given(st.lists(to_worker, max_size=4), st.lists(st.integers(1, 40), max_size=30))
@settings(max_examples=60)
def test_messages_to_the_worker_survive_any_cutting(messages: list[wire.ToWorker], cuts: list[int]) -> None:
    assert played(messages, cuts, wire.Frames(wire.to_worker)) == messages


@given(st.lists(from_worker, max_size=4), st.lists(st.integers(1, 40), max_size=30))
@settings(max_examples=60)
def test_messages_from_the_worker_survive_any_cutting(messages: list[wire.FromWorker], cuts: list[int]) -> None:
    assert played(messages, cuts, wire.Frames(wire.from_worker)) == messages


def played(messages: list[wire.ToWorker] | list[wire.FromWorker], cuts: list[int], frames: wire.Frames) -> list[object]:
    data = b"".join(wire.encode(message) for message in messages)
    found: list[object] = []
    for size in [*cuts, len(data)]:
        found += frames.feed(data[:size])
        data = data[size:]
    return found


@given(st.binary(max_size=300))
@settings(max_examples=200)
def test_any_bytes_are_messages_an_incomplete_frame_or_a_protocol_error(noise: bytes) -> None:
    for decoder in (wire.to_worker, wire.from_worker):
        for data in (noise, struct.pack(">I", len(noise)) + noise):
            with suppress(ProtocolError):
                for message in wire.Frames(decoder).feed(data):
                    assert isinstance(message, wire.Message)


def test_an_announced_frame_beyond_the_bound_is_refused_before_it_arrives() -> None:
    with pytest.raises(ProtocolError, match="announced"):
        list(wire.Frames(wire.to_worker).feed(struct.pack(">I", wire.MAX_FRAME_BYTES + 1)))


def test_deep_nesting_is_a_protocol_error_and_not_a_crash() -> None:
    nested = b"\x91" * 100_000
    with pytest.raises(ProtocolError):
        list(wire.Frames(wire.from_worker).feed(struct.pack(">I", len(nested)) + nested))


def test_a_message_of_the_other_direction_is_refused() -> None:
    with pytest.raises(ProtocolError):
        list(wire.Frames(wire.to_worker).feed(wire.encode(wire.Phase("load", 1.0, ""))))


def test_messages_before_a_bad_frame_still_arrive() -> None:
    messages = wire.Frames(wire.to_worker).feed(wire.encode(wire.Cancel("a")) + struct.pack(">I", 1) + b"\xc1")
    assert next(messages) == wire.Cancel("a")
    with pytest.raises(ProtocolError):
        next(messages)

"""Bodies made to be slow, or large: what is refused, and that it is refused while it is still text."""

from __future__ import annotations

import gc
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import InvalidRequest
from penstock.serve.body import parse_body
from penstock.serve.schema import ChatBody, CompletionBody

from .strategies import CHAT, COMPLETION


def parse(raw: bytes, kind: Any = CompletionBody) -> Any:
    return parse_body(raw, kind, lambda name: None)


@pytest.mark.parametrize(
    ("raw", "kind", "field"),
    [
        (b'{"messages": [' + b'{"role":"user","content":[]},' * 70_000 + b"{}]}", ChatBody, "messages"),
        (b'{"prompt": [' + b"[1]," * 1_100_000 + b"[1]]}", CompletionBody, "prompt"),
        (b'{"prompt": [' + b"1," * 1_100_000 + b"1]}", CompletionBody, "prompt"),
        (b'{"prompt": ["a,' + b"," * 1_100_000 + b'", 1.5]}', CompletionBody, "prompt[1]"),
    ],
)
def test_a_list_of_far_too_many_items_is_refused_and_named(raw: bytes, kind: Any, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(raw, kind)
    assert caught.value.field == field


def test_what_nobody_reads_is_never_made_into_objects() -> None:
    raw = b'{"prompt": "x", "unknown": [' + b"[]," * 1_000_000 + b"[]]}"
    gc.collect()
    before = len(gc.get_objects())
    assert parse(raw).prompt == "x"
    assert len(gc.get_objects()) < before + 1_000


def test_the_collector_is_on_again_after_good_and_bad_bodies() -> None:
    parse(b'{"prompt": "x"}')
    with pytest.raises(InvalidRequest):
        parse(b"{")
    assert gc.isenabled()


def test_the_top_level_must_be_an_object_and_all_of_it_text() -> None:
    for raw in (b"[]", b"3", b'{"prompt": "x", "unknown": "\xff"}', b'{"prompt": "\\ud800"}', b'{"n": 1e}'):
        with pytest.raises(InvalidRequest) as caught:
            parse(raw)
        assert caught.value.code == "invalid_json"


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.tuples(COMPLETION, st.just(CompletionBody)), st.tuples(CHAT, st.just(ChatBody))))
def test_reading_text_or_plain_data_is_the_same(case: tuple[dict[str, Any], Any]) -> None:
    """The struct is made from the bytes; what is refused and what comes out is as if it were made from their values."""
    body, kind = case
    raw = json.dumps(body).encode()
    try:
        expected = msgspec.convert(msgspec.json.decode(raw), kind, str_keys=True)
    except (msgspec.MsgspecError, ValueError):
        expected = None
    refused = None
    try:
        found = parse(raw, kind)
    except InvalidRequest as error:
        found, refused = None, error
    if refused is None or expected is None:
        assert found == expected
    else:
        assert refused.code == "unsupported_parameter" or "NUL" in str(refused)

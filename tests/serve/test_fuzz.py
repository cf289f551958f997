"""Whatever a body holds, it is answered with success or a refusal in the one error shape; never 5xx, never silence."""

from __future__ import annotations

import json
from typing import Any

import httpx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.serve.schema import ChatBody, CompletionBody
from penstock.serve.unsupported import UNSUPPORTED

from .conftest import Scripted

FUZZ = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

texts = st.text(max_size=20) | st.sampled_from(["", "\0", "\ud800", "<|end|>", "x" * 300, "none", "auto"])
numbers = st.integers(-5, 70) | st.integers() | st.floats() | st.sampled_from([2**63, -(2**63), 10**320, 1e308])
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
likely = st.sampled_from([True, False, 1, 2, 0.5, "a", ["a"], [97], {"97": 1.5}, {"include_usage": True}, None])
messages = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["system", "user", "assistant", "tool", "developer"]) | texts,
            "content": texts | values,
        },
        optional={"name": values, "tool_calls": values, "tool_call_id": values, "reasoning": values},
    ),
    max_size=4,
)


def bodies(kind: type, required: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Bodies that are mostly valid: a few fields at a time get a likely or an arbitrary value."""
    names = st.sampled_from(sorted({*kind.__struct_fields__, *UNSUPPORTED, "nonsense"} - {"max_tokens"}))  # type: ignore[attr-defined]
    fields = st.dictionaries(names, likely | values, max_size=4)
    return st.builds(
        lambda base, extra, cap: base | extra | {"max_tokens": cap},
        st.fixed_dictionaries(required),
        fields,
        likely | values,
    )


def check(reply: httpx.Response) -> None:
    assert reply.status_code < 500, reply.text
    if reply.status_code != 200:
        error = reply.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert reply.status_code in (400, 404)
    elif reply.headers["content-type"].startswith("text/event-stream"):
        assert reply.content.endswith(b"data: [DONE]\n\n")
    else:
        assert reply.json()["usage"]["total_tokens"] > 0


def post(scripted: Scripted, path: str, body: Any) -> httpx.Response:
    raw = json.dumps(body).encode()  # ASCII: lone surrogates and NaN go out the way sloppy clients send them
    return scripted.http.post(path, content=raw, headers={"content-type": "application/json"})


@FUZZ
@given(body=bodies(ChatBody, {"messages": messages | values}))
def test_no_chat_body_breaks_the_server(scripted: Scripted, body: dict[str, Any]) -> None:
    check(post(scripted, "/v1/chat/completions", body))


@FUZZ
@given(body=bodies(CompletionBody, {"prompt": texts | values | st.lists(st.integers(-1, 300))}))
def test_no_completion_body_breaks_the_server(scripted: Scripted, body: dict[str, Any]) -> None:
    check(post(scripted, "/v1/completions", body))


@FUZZ
@given(raw=st.binary(max_size=200) | values.map(lambda value: json.dumps(value).encode()))
def test_no_bytes_break_the_server(scripted: Scripted, raw: bytes) -> None:
    reply = scripted.http.post("/v1/completions", content=raw, headers={"content-type": "application/json"})
    check(reply)

"""Bodies for hypothesis, made from the request schemas: mostly valid, with values around each bound and arbitrary ones.

A field that is added to a schema is covered at once. What makes an answer long is kept small, for these are sent by the
hundred thousand.
"""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec.inspect as types
from hypothesis import strategies as st

from penstock.serve.adapters import LoadBody, UnloadBody
from penstock.serve.embeddings import EmbeddingBody
from penstock.serve.messages_body import CountBody, MessagesBody
from penstock.serve.responses_body import ResponsesBody
from penstock.serve.schema import ChatBody, CompletionBody
from penstock.serve.text import DetokenizeBody, TokenizeBody
from penstock.serve.unsupported import UNSUPPORTED

Values = st.SearchStrategy[Any]

texts = st.text(max_size=20) | st.sampled_from(["", "\0", "\ud800", "<|end|>", "x" * 300, "none", "auto", "é🌊\u2028"])
numbers = st.integers(-5, 70) | st.integers() | st.floats() | st.sampled_from([2**63, -(2**63), 10**320, 1e308])
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
likely = st.sampled_from([True, False, 1, 2, 0.5, "a", ["a"], [97], {"97": 1.5}, {"include_usage": True}, None])
counts = st.integers(1, 3)
LONG: Final = frozenset({"max_tokens", "max_completion_tokens", "min_tokens", "max_output_tokens"})
"""Fields of which a large value means a long answer."""
roles = st.sampled_from(["system", "user", "assistant", "tool", "developer"])
messages = st.lists(
    st.fixed_dictionaries(
        {"role": roles | texts, "content": texts | values},
        optional={"name": values, "tool_calls": values, "tool_call_id": values, "reasoning": values},
    ),
    max_size=4,
)
sound_messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": st.text(max_size=20)}),
    min_size=1,
    max_size=4,
)


def of_type(kind: types.Type) -> Values:
    """Values of a type in a schema: inside its bounds, on them, and one beyond."""
    match kind:
        case types.UnionType():
            return st.one_of([of_type(one) for one in kind.types if not isinstance(one, types.NoneType)])
        case types.BoolType():
            return st.booleans()
        case types.IntType():
            low, high = kind.ge if kind.ge is not None else -100, kind.le if kind.le is not None else 100
            return st.integers(low, min(high, low + 20)) | st.sampled_from([low - 1, low, high, high + 1])
        case types.FloatType():
            low = kind.ge if kind.ge is not None else kind.gt if kind.gt is not None else -10.0
            high = kind.le if kind.le is not None else 10.0
            return st.floats(low, high) | st.sampled_from([low, high, low - 0.01, high + 0.01, 0, 1])
        case types.StrType():
            return st.text(max_size=20) | st.sampled_from(["a" * 256, "a" * 257, ""])
        case types.ListType():
            return st.lists(of_type(kind.item_type), max_size=4)
        case types.DictType():
            return st.dictionaries(st.integers(0, 9000).map(str) | texts, of_type(kind.value_type), max_size=4)
        case types.LiteralType():
            return st.sampled_from(list(kind.values))
        case types.StructType():
            return of_struct(kind)
        case _:
            return values


def of_struct(kind: types.StructType) -> Values:
    """Objects with some of a struct's fields."""
    fields = {one.encode_name: of_type(one.type) for one in kind.fields}
    required = {one.encode_name for one in kind.fields if one.required}
    return st.fixed_dictionaries(
        {name: fields[name] for name in required},
        optional={name: value for name, value in fields.items() if name not in required},
    )


def bodies(kind: type, required: dict[str, Values], caps: tuple[str, ...] = ()) -> st.SearchStrategy[dict[str, Any]]:
    """Bodies that are mostly valid: a few fields at a time get a value of their type, a likely or an arbitrary one.

    `caps`: fields that are always there, or the answer would be long.
    """
    info = types.type_info(kind)
    assert isinstance(info, types.StructType)
    of_field = {one.encode_name: of_type(one.type) for one in info.fields if one.encode_name not in required}
    own, others = sorted(of_field.keys() - LONG), sorted({*UNSUPPORTED, "nonsense"} - of_field.keys())
    names = usually(st.sampled_from(own), st.sampled_from(others))
    some = st.lists(names, max_size=4, unique=True).flatmap(
        lambda chosen: st.fixed_dictionaries(
            {name: usually(of_field[name], likely, values) if name in of_field else values for name in chosen}
        )
    )
    named = usually(st.just({}), st.sampled_from([{"model": name} for name in ("millrace", "scripted", "river")]))
    capped = st.fixed_dictionaries(dict.fromkeys(caps, usually(counts, likely, values)))
    base = st.fixed_dictionaries(required)
    return st.builds(lambda base, extra, model, cap: base | extra | model | cap, base, some, named, capped)


def usually(first: Values, *others: Values) -> Values:
    """Nine times of ten `first`."""
    return st.integers(0, 9).flatmap(lambda number: first if number < 9 else st.one_of(others))


_prompts = texts | values | st.lists(st.integers(-1, 300)) | st.lists(st.text(min_size=1, max_size=9), max_size=3)
CHAT = bodies(ChatBody, {"messages": usually(sound_messages, messages, values)}, ("max_tokens",))
COMPLETION = bodies(CompletionBody, {"prompt": usually(st.text(min_size=1, max_size=20), _prompts)}, ("max_tokens",))
_inputs = usually(st.text(min_size=1, max_size=20), sound_messages, _prompts)
RESPONSES = bodies(ResponsesBody, {"input": _inputs}, ("max_output_tokens",))
_turns = {"messages": usually(sound_messages, messages, values), "max_tokens": usually(counts, values)}
MESSAGES = bodies(MessagesBody, _turns)
COUNT = bodies(CountBody, {"messages": _turns["messages"]})
EMBEDDING = bodies(EmbeddingBody, {"input": _prompts})
TOKENIZE = bodies(TokenizeBody, {}) | bodies(TokenizeBody, {"prompt": texts}) | bodies(
    TokenizeBody, {"messages": sound_messages | messages}
)  # fmt: skip
DETOKENIZE = bodies(DetokenizeBody, {"tokens": st.lists(st.integers(0, 300)) | values})
BY_PATH: Final[dict[str, Values]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETION,
    "/v1/responses": RESPONSES,
    "/v1/messages": MESSAGES,
    "/v1/messages/count_tokens": COUNT,
    "/v1/embeddings": EMBEDDING,
    "/tokenize": TOKENIZE,
    "/detokenize": DETOKENIZE,
}
_adapters = st.sampled_from(["river", "mill"])
_names = st.sampled_from(["river", "mill", "scripted", "millrace"]) | texts | st.text("ab._:/-", max_size=140)
_places = st.sampled_from(["one", "one/../one", "..", ".", "/", "/etc", "~", "none", "one\0", "a/" * 2000]) | texts
ADMIN_BY_PATH: Final[dict[str, Values]] = {
    "/v1/load_lora_adapter": bodies(
        LoadBody,
        {"lora_name": usually(_adapters, _names, values), "lora_path": usually(st.just("one"), _places, values)},
    ),
    "/v1/unload_lora_adapter": bodies(UnloadBody, {"lora_name": usually(_adapters, _names, values)}),
    "/admin/reset_prefix_cache": values,
    "/admin/reload_keys": values,
}
"""On the administration's listener. In its directory lies an adapter called "one"."""
END: Final[dict[str, Values]] = {"/admin/drain": values}
"""Also there, and the end of a real server."""


def encoded(body: Any) -> bytes:
    """ASCII: lone surrogates, NaN and infinities go out the way sloppy clients send them."""
    return json.dumps(body).encode()


def _damaged(raw: bytes, at: int, cut: int, new: bytes) -> bytes:
    at %= len(raw) + 1
    return raw[:at] + new + raw[at + cut :]


_scraps = st.binary(max_size=8) | st.sampled_from(
    [b"\\u0000", b"\\ud800", b"NaN", b"-Infinity", b"1e999", b"[" * 2000, b'"', b"\xff", b"{}", b",", b"null"]
)
DAMAGED: st.SearchStrategy[bytes] = st.builds(
    _damaged, (CHAT | COMPLETION).map(encoded), st.integers(0, 2000), st.integers(0, 12), _scraps
)
"""Bodies with bytes taken out or put in."""
RAW: st.SearchStrategy[bytes] = st.binary(max_size=200) | values.map(encoded) | DAMAGED

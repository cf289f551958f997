"""Bodies for hypothesis: mostly valid ones, with likely and arbitrary values in a few fields."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from penstock.serve.schema import ChatBody, CompletionBody
from penstock.serve.unsupported import UNSUPPORTED

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


CHAT = bodies(ChatBody, {"messages": messages | values})
COMPLETION = bodies(CompletionBody, {"prompt": texts | values | st.lists(st.integers(-1, 300))})

"""The official client against the model in the box: every endpoint, every option of each, whole and streamed."""

from __future__ import annotations

from typing import Any, Final

import openai
import pytest
from openai.types.chat import ChatCompletion

from penstock.serve.embeddings import EmbeddingBody
from penstock.serve.schema import ChatBody, CompletionBody
from penstock.serve.text import DetokenizeBody, TokenizeBody

from .conftest import Real
from .sse import check_usage, read_stream

COMMON: Final[dict[str, list[Any]]] = {
    "stream": [True, False, None],
    "stream_options": [{"include_usage": True}, {"include_usage": False}, {}, None],
    "n": [1, 3],
    "temperature": [0, 0.7, 2],
    "top_k": [-1, 0, 5],
    "top_p": [0.1, 1],
    "min_p": [0, 0.2, 1],
    "repetition_penalty": [0.9, 1.5],
    "presence_penalty": [-2, 2],
    "frequency_penalty": [-2, 2],
    "logit_bias": [{"100": 5.5, "101": -100}, {}],
    "seed": [0, -1, 2**63 - 1, -(2**63)],
    "stop": ["the", ["a", "b"], [], None],
    "stop_token_ids": [[5, 6], []],
    "min_tokens": [0, 2],
    "ignore_eos": [True, False],
    "include_stop_str_in_output": [True],
    "skip_special_tokens": [True, False],
    "prompt_logprobs": [0, 3],
    "return_token_ids": [True],
    "timings": [True],
    "priority": [-5, 5],
    "cache_salt": ["salt"],
    "user": ["someone"],
    "metadata": [{"job": "7"}],
}
CHAT: Final[dict[str, list[Any]]] = COMMON | {
    "max_tokens": [1, 5],
    "max_completion_tokens": [1, 5],
    "logprobs": [True, False],
    "top_logprobs": [0, 20],
    "add_generation_prompt": [True, False],
    "continue_final_message": [False],
    "chat_template_kwargs": [{"enable_thinking": False}, {}],
}
COMPLETION: Final[dict[str, list[Any]]] = COMMON | {
    "max_tokens": [0, 1, 5],
    "echo": [True, False],
    "logprobs": [0, 5],
    "best_of": [1],
    "add_special_tokens": [True, False],
}
NEEDS: Final[dict[str, dict[str, Any]]] = {
    "stream_options": {"stream": True},
    "top_logprobs": {"logprobs": True},
}
"""What an option cannot be without."""
OTHERS: Final = frozenset(
    {
        "tools", "tool_choice", "parallel_tool_calls", "response_format", "structured_outputs", "guided_json",
        "guided_regex", "guided_choice", "guided_grammar", "json_schema", "regex", "ebnf", "reasoning_effort",
    }
)  # fmt: skip
"""Options with tests of their own (test_tools.py and others of that kind)."""

PYTHON_CLIENT_KNOWS: Final = frozenset(
    {
        "stream", "stream_options", "n", "temperature", "top_p", "presence_penalty", "frequency_penalty", "logit_bias",
        "seed", "stop", "user", "max_tokens", "max_completion_tokens", "logprobs", "top_logprobs", "echo", "best_of",
    }
)  # fmt: skip


def split(options: dict[str, Any]) -> dict[str, Any]:
    """As a program would pass them: the client's own arguments, and the rest in `extra_body`."""
    known = {name: value for name, value in options.items() if name in PYTHON_CLIENT_KNOWS and value is not None}
    rest = {name: value for name, value in options.items() if name not in known}
    return {**known, "extra_body": rest}


def cases(options: dict[str, list[Any]], zero_needs: dict[str, Any]) -> list[Any]:
    found = []
    for name, values in options.items():
        for value in values:
            with_needs = NEEDS.get(name, {}) | (zero_needs if (name, value) == ("max_tokens", 0) else {})
            found.append(pytest.param(with_needs | {name: value}, id=f"{name}={value}"))
    return found


def test_no_option_is_left_out() -> None:
    for kind, options, required in ((ChatBody, CHAT, "messages"), (CompletionBody, COMPLETION, "prompt")):
        fields = set(kind.__struct_fields__) - {"model", required}
        assert fields - set(options) <= OTHERS, fields - set(options) - OTHERS


@pytest.mark.parametrize("options", cases(CHAT, {}))
def test_chat(real: Real, options: dict[str, Any]) -> None:
    body = {"max_completion_tokens": 4} | options
    create = real.openai.chat.completions.create
    messages: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a river."}]
    reply = create(model="millrace", messages=messages, **split(body))
    if not body.get("stream"):
        assert isinstance(reply, ChatCompletion)
        assert len(reply.choices) == body.get("n", 1)
        assert reply.usage is not None
        check_usage(reply.usage.model_dump())
        assert {choice.finish_reason for choice in reply.choices} <= {"stop", "length"}
        raw = real.http.post("/v1/chat/completions", json=body | {"messages": messages, "stream": True})
    else:
        assert all(chunk.object == "chat.completion.chunk" for chunk in reply)
        raw = real.http.post("/v1/chat/completions", json=body | {"messages": messages})
    usage = bool((body.get("stream_options") or {}).get("include_usage"))
    stream = read_stream(raw.content, n=body.get("n", 1), include_usage=usage)
    assert stream.error is None


@pytest.mark.parametrize("options", cases(COMPLETION, {"echo": True}))
def test_completions(real: Real, options: dict[str, Any]) -> None:
    body = {"max_tokens": 4} | options
    reply = real.openai.completions.create(model="millrace", prompt="The river", **split(body))
    if not body.get("stream"):
        assert len(reply.choices) == body.get("n", 1)
        assert reply.usage is not None
        check_usage(reply.usage.model_dump())
    else:
        assert all(chunk.object == "text_completion" for chunk in reply)
    raw = real.http.post("/v1/completions", json=body | {"prompt": "The river", "stream": True})
    usage = bool((body.get("stream_options") or {}).get("include_usage"))
    stream = read_stream(raw.content, n=body.get("n", 1), include_usage=usage, chat=False)
    assert stream.error is None
    if body.get("echo"):
        assert all(choice.text.startswith("The river") for choice in stream.choices.values())


def test_prompt_logprobs_are_those_of_the_tokens_when_they_are_generated(real: Real) -> None:
    """Teacher forcing against the sampler: what the engine made greedily is scored as it was when it was made."""
    body = {"temperature": 0, "max_tokens": 8, "ignore_eos": True, "logprobs": 0, "return_token_ids": True}
    made = real.http.post("/v1/completions", json=body | {"prompt": "The river"}).json()["choices"][0]
    ids = made["prompt_token_ids"] + made["token_ids"]
    scored = real.http.post("/v1/completions", json={"prompt": ids, "echo": True, "logprobs": 1, "max_tokens": 0})
    choice = scored.json()["choices"][0]
    expected = made["logprobs"]["token_logprobs"]
    assert choice["logprobs"]["token_logprobs"][-8:] == pytest.approx(expected, abs=1e-4)
    for token, top in zip(choice["logprobs"]["tokens"][-8:], choice["logprobs"]["top_logprobs"][-8:], strict=True):
        assert max(top, key=lambda name: top[name]) == token  # greedy: each was the likeliest
    assert scored.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_models_ids_and_headers(real: Real) -> None:
    assert [model.id for model in real.openai.models.list()] == ["millrace"]
    assert real.openai.models.retrieve("millrace").owned_by == "penstock"
    raw = real.openai.models.with_raw_response.list(extra_headers={"x-request-id": "mine-1"})
    assert raw.headers["x-request-id"] == "mine-1"


def test_embeddings_are_refused_by_a_model_without(real: Real) -> None:
    assert set(EmbeddingBody.__struct_fields__) >= {"input", "encoding_format", "dimensions"}
    with pytest.raises(openai.BadRequestError, match="the model has none"):
        real.openai.embeddings.create(model="millrace", input="hi")


def test_tokenize_and_detokenize_are_each_others_inverse(real: Real) -> None:
    text = "Rivers — ça coule, 川 🌊"
    bodies = [{name: value} for name, value in (("return_token_strs", True), ("add_special_tokens", False))]
    assert {name for body in bodies for name in body} < set(TokenizeBody.__struct_fields__)
    for body in bodies:
        reply = real.http.post("/tokenize", json=body | {"prompt": text}).json()
        assert reply["count"] == len(reply["tokens"])
    back = real.http.post("/detokenize", json={"tokens": reply["tokens"]}).json()
    assert back == {"prompt": text}
    assert DetokenizeBody.__struct_fields__ == ("model", "tokens")

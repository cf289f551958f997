"""What a body may hold: msgspec structs whose annotations are the bounds that no setting moves.

The lower ones that an operator may set are `server.limits` (limits.py checks them).

A field that is absent and a field that is null mean the same, as clients send both. Fields nobody knows are ignored and
counted; fields that are known, not implemented and would change the answer are refused (`unsupported.py`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

Text = Annotated[str, Meta(max_length=8_000_000)]
Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
StopString = Annotated[str, Meta(min_length=1, max_length=4096)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Probability = Annotated[float, Meta(ge=0, le=1)]
MetadataKey = Annotated[str, Meta(max_length=64)]
MetadataValue = Annotated[str, Meta(max_length=512)]


class StreamOptions(msgspec.Struct, frozen=True):
    """`include_usage`: one more chunk, with the usage and no choices."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    """With it: the usage so far in each chunk, too."""


class Named(msgspec.Struct, frozen=True, kw_only=True):
    """What every body may say."""

    model: str | None = None
    """None: the model that is served."""


class Body(Named, frozen=True, kw_only=True):
    """Fields that both endpoints share. None: the model's own default, or the field's."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    """0 and -1: all."""
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    min_p: Probability | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=10)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[TokenId, Bias], Meta(max_length=65_536)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=64)] | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=1024)] | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    prompt_logprobs: Annotated[int, Meta(ge=0, le=100)] | None = None
    return_token_ids: bool | None = None
    timings: bool | None = None
    """Tell where this request's time went."""
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | None = None
    cache_salt: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    response_format: dict[str, Any] | None = None
    """structured.py knows what may stand there, and in vLLM's names for the same:"""
    guided_json: Any = None
    guided_regex: str | None = None
    guided_choice: list[Any] | None = None
    guided_grammar: str | None = None
    json_schema: Any = None
    """SGLang's names:"""
    regex: str | None = None
    ebnf: str | None = None
    structured_outputs: dict[str, Any] | None = None
    user: Annotated[str, Meta(max_length=512)] | None = None
    metadata: Annotated[dict[MetadataKey, MetadataValue], Meta(max_length=256)] | None = None


class CompletionBody(Body, frozen=True, kw_only=True):
    """POST /v1/completions."""

    prompt: Text | Annotated[list[TokenId | Text | list[TokenId]], Meta(min_length=1)]
    """A string, token ids, or up to 64 of either."""
    max_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    """0 with `echo`: the prompt's own log-probabilities, and nothing new."""
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=100)] | None = None
    best_of: Annotated[int, Meta(ge=1, le=128)] | None = None
    add_special_tokens: bool | None = None


class TextPart(msgspec.Struct, frozen=True):
    """One part of a message. Parts of other types are refused by name in `chat.py`."""

    type: str
    text: Text | None = None


class Message(msgspec.Struct, frozen=True):
    """One turn. `tool_calls` are calls the assistant made earlier."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[TextPart] | None = None
    name: Annotated[str, Meta(max_length=256)] | None = None
    tool_call_id: Annotated[str, Meta(max_length=256)] | None = None
    tool_calls: Annotated[list[dict[str, Any]], Meta(max_length=128)] | None = None
    reasoning_content: Text | None = None
    reasoning: Text | None = None
    """What the assistant thought, under either name; templates that want it find it as `reasoning_content`."""


class ChatBody(Body, frozen=True, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=65_536)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=100)] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: Annotated[str, Meta(max_length=64)] | None = None
    tools: Annotated[list[Any], Meta(max_length=1024)] | None = None
    """tools/request.py knows what may stand there."""
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None

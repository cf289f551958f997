"""The official Python client, pointed here, behaves as with its own service."""

from __future__ import annotations

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from penstock.errors import Overloaded, RequestFailed

from .conftest import Scripted
from .scripted import raising, say

USER: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]


def test_chat(scripted: Scripted) -> None:
    reply = scripted.openai.chat.completions.create(model="scripted", messages=USER, n=2, logprobs=True, top_logprobs=1)
    assert [choice.message.content for choice in reply.choices] == ["hello", "hello"]
    assert reply.usage is not None
    assert reply.usage.prompt_tokens_details is not None
    assert reply.choices[0].logprobs is not None


def test_chat_stream_with_usage(scripted: Scripted) -> None:
    chunks = list(
        scripted.openai.chat.completions.create(
            model="scripted", messages=USER, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "hello"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 6


def test_completion_and_its_stream(scripted: Scripted) -> None:
    whole = scripted.openai.completions.create(model="scripted", prompt=[1, 2, 3], logprobs=1)
    assert whole.choices[0].text == "hello"
    chunks = scripted.openai.completions.create(model="scripted", prompt=["a", "b"], stream=True)
    texts = {0: "", 1: ""}
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == {0: "hello", 1: "hello"}


def test_models(scripted: Scripted) -> None:
    assert [model.id for model in scripted.openai.models.list()] == ["scripted"]
    assert scripted.openai.models.retrieve("scripted").id == "scripted"


def test_errors_become_the_clients_own_classes(scripted: Scripted) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        scripted.openai.completions.create(model="scripted", prompt="x", temperature=9)
    assert (bad.value.param, bad.value.type) == ("temperature", "invalid_request_error")
    with pytest.raises(openai.NotFoundError) as missing:
        scripted.openai.completions.create(model="other", prompt="x")
    assert missing.value.code == "model_not_found"
    assert missing.value.request_id


def test_an_error_in_a_stream_is_raised_by_the_client(scripted: Scripted) -> None:
    scripted.service.script = raising(RequestFailed("lost"), after=b"he")
    with pytest.raises(openai.APIError, match="lost"):
        list(scripted.openai.chat.completions.create(model="scripted", messages=USER, stream=True))


def test_the_client_waits_as_told_and_tries_again(scripted: Scripted) -> None:
    refusals = iter([raising(Overloaded("full", retry_after_s=0.02)), say("later")])

    async def script(request):  # type: ignore[no-untyped-def]
        async for output in next(refusals)(request):
            yield output

    scripted.service.script = script
    reply = scripted.openai.with_options(max_retries=1).completions.create(model="scripted", prompt="x")
    assert reply.choices[0].text == "later"

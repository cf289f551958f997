"""Log-probabilities of a long prompt in a stream: made off the event loop, in order, as in a whole answer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from penstock.serve import chat_format, completions
from penstock.serve.logprobs import LegacyLogprobs

from .conftest import Loop, Scripted
from .scripted import say
from .sse import read_stream

LONG = "long " * 200
OPTIONS: dict[str, dict[str, Any]] = {
    "echo": {"echo": True, "logprobs": 3},
    "by id": {"prompt_logprobs": 3},
    "all": {"echo": True, "logprobs": 3, "prompt_logprobs": 2, "return_token_ids": True},
}


class Held:
    """Stands in for what makes log-probabilities of a prompt: notes its thread, and waits until it is let go."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.threads = function, list[str]()
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.in_time = True

    def __call__(self, *args: Any) -> Any:
        self.threads.append(threading.current_thread().name)
        self.begun.set()
        self.in_time = self.go_on.wait(60) and self.in_time
        return self.function(*args)


def logprobs_of(chunks: list[dict[str, Any]], index: int) -> dict[str, list[Any]]:
    """The four lists of a choice, put together."""
    found: dict[str, list[Any]] = {}
    for chunk in chunks:
        for one in chunk["choices"]:
            if one["index"] == index and one.get("logprobs"):
                for name, values in one["logprobs"].items():
                    found.setdefault(name, []).extend(values)
    return found


@pytest.mark.parametrize("tokens_per_output", [1, 7])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_stream_holds_what_a_whole_answer_does(
    scripted: Scripted, options: dict[str, Any], n: int, tokens_per_output: int
) -> None:
    scripted.service.script = say("an answer of some length", tokens_per_output=tokens_per_output)
    asked = {"prompt": LONG, "n": n, "max_tokens": 100, **options}
    whole = scripted.complete(**asked).json()["choices"]
    stream = read_stream(scripted.complete(**asked, stream=True).content, n=n, chat=False)
    assert stream.error is None
    for index, one in enumerate(whole):
        choice = stream.choices[index]
        assert (choice.text, choice.finish_reason) == (one["text"], one["finish_reason"])
        assert logprobs_of(stream.chunks, index) == (one["logprobs"] or {})
        shown = [
            part["prompt_logprobs"]
            for chunk in stream.chunks
            for part in chunk["choices"]
            if part["index"] == index and "prompt_logprobs" in part
        ]
        assert shown == ([one["prompt_logprobs"]] if "prompt_logprobs" in one else [])


@pytest.mark.parametrize("kind", ["echo", "by id", "chat"])
def test_others_are_served_while_a_long_prompts_are_written(
    scripted: Scripted, loop: Loop, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    if kind == "echo":
        held = Held(LegacyLogprobs.of_prompt)
        monkeypatch.setattr(LegacyLogprobs, "of_prompt", lambda *args: held(*args))
    else:
        module = chat_format if kind == "chat" else completions
        held = Held(module.prompt_logprobs)
        monkeypatch.setattr(module, "prompt_logprobs", held)

    def ask() -> bytes:
        if kind == "chat":
            message = {"role": "user", "content": LONG}
            return scripted.chat(messages=[message], prompt_logprobs=3, stream=True).content
        return scripted.complete(prompt=LONG, stream=True, **OPTIONS[kind]).content

    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(ask)
        try:
            assert held.begun.wait(60)
            for stream in (False, True):
                assert scripted.complete(prompt="hi", stream=stream).status_code == 200
            assert not long.done()
        finally:
            held.go_on.set()
        found = read_stream(long.result(20), chat=kind == "chat")
    assert held.in_time, "nothing waited for it"
    assert held.threads
    assert loop.thread.name not in held.threads
    assert (found.error, found.choices[0].finish_reason) == (None, "stop")


def test_a_short_prompts_are_written_at_once(scripted: Scripted, loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(LegacyLogprobs.of_prompt)
    held.go_on.set()
    monkeypatch.setattr(LegacyLogprobs, "of_prompt", lambda *args: held(*args))
    assert scripted.complete(prompt="hi", stream=True, echo=True, logprobs=2).status_code == 200
    assert held.threads == [loop.thread.name]


def test_an_error_in_what_a_thread_makes_ends_the_stream_with_an_error(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> Any:
        raise RuntimeError("on purpose")

    monkeypatch.setattr(LegacyLogprobs, "of_prompt", broken)
    reply = scripted.complete(prompt=LONG, stream=True, echo=True, logprobs=3)
    assert reply.status_code == 500, "nothing was sent yet"
    assert reply.json()["error"]["code"] == "internal_error"

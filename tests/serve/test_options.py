"""SERVING-CHECKLIST section 3: what each option does to the request that is run and to the answer that comes back."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from itertools import chain
from typing import Any

import pytest

from penstock.control.request import Request, Sampling
from penstock.control.step import TokenLogprobs
from penstock.deployment import Deployment
from penstock.runtime import Tokenizer
from penstock.runtime.facts import Output
from penstock.serve.logprobs import LegacyLogprobs, chat_logprobs
from penstock.serve.offload import INLINE_CHARACTERS

from .conftest import Loop, Scripted
from .scripted import EOS, ScriptedService, byte_tokenizer, say, scripted_app
from .sse import check_usage, read_stream


def test_fields_become_sampling_one_to_one(scripted: Scripted) -> None:
    scripted.complete(
        temperature=0.7, top_k=5, top_p=0.9, min_p=0.1, repetition_penalty=1.2, presence_penalty=0.5,
        frequency_penalty=-0.5,
        logit_bias={"5": 1, "7": -100}, seed=-3, logprobs=2, stop_token_ids=[10], min_tokens=2, max_tokens=9,
    )  # fmt: skip
    (request,) = scripted.service.calls
    assert request.max_tokens == 9
    assert request.sampling == Sampling(
        temperature=0.7, top_k=5, top_p=0.9, min_p=0.1, repetition_penalty=1.2, presence_penalty=0.5,
        frequency_penalty=-0.5,
        logit_bias=((5, 1.0), (7, -100.0)), seed=-3, logprobs=2, stop_ids=(EOS, 10), min_tokens=2,
    )  # fmt: skip


def test_absent_fields_take_the_models_generation_config_and_explicit_ones_win(loop: Loop) -> None:
    service = ScriptedService(Deployment())
    tokenizer = byte_tokenizer(temperature=0.3, top_k=20)
    app = scripted_app(service, tokenizer)
    for url in loop.serve(app):
        client = Scripted(service, url)
        client.complete()
        client.complete(temperature=0, top_k=-1)
    assert [(one.sampling.temperature, one.sampling.top_k) for one in service.calls] == [(0.3, 20), (0.0, 0)]


def test_ignore_eos_removes_end_tokens_and_keeps_the_clients_stop_ids(scripted: Scripted) -> None:
    scripted.complete(ignore_eos=True, stop_token_ids=[108])
    assert scripted.service.calls[0].sampling.stop_ids == (108,)


def test_max_completion_tokens_wins_and_without_both_chat_may_fill_the_context(scripted: Scripted) -> None:
    scripted.chat(max_tokens=5, max_completion_tokens=7)
    scripted.chat(max_tokens=5)
    scripted.chat()
    scripted.complete()
    calls = scripted.service.calls
    assert [one.max_tokens for one in calls] == [7, 5, 4096 - len(calls[2].prompt), 16]


def test_the_tenant_is_never_what_the_client_says(scripted: Scripted) -> None:
    scripted.complete(user="someone else", cache_salt="salt", priority=-2)
    (request,) = scripted.service.calls
    assert (request.tenant, request.salt, request.priority) == ("", "salt", -2)


def test_choices_of_one_seed_differ_and_the_first_is_that_of_n_1(scripted: Scripted) -> None:
    scripted.complete(n=3, seed=41)
    assert [one.sampling.seed for one in scripted.service.calls] == [41, 42, 43]


def test_internal_ids_are_unique_even_if_clients_repeat_theirs(scripted: Scripted) -> None:
    for _ in range(2):
        scripted.http.post("/v1/completions", json={"prompt": "x", "n": 2}, headers={"x-request-id": "same"})
    assert len({one.id for one in scripted.service.calls}) == 4


def test_internal_ids_begin_the_ids_of_answers_and_are_short_enough_for_the_decoder_to_keep(scripted: Scripted) -> None:
    answer = scripted.chat(n=2).json()
    first, second = (one.id for one in scripted.service.calls)
    begin, _, number = second.rpartition("-")
    assert (first, number) == (f"{begin}-0", "1")
    assert answer["id"].startswith(f"chatcmpl-{begin}")
    most = 64 * 128  # prompts, and choices of each
    assert len(f"{begin}-{most}") <= 31


def test_a_whole_chat_answer(scripted: Scripted) -> None:
    body = scripted.chat(return_token_ids=True).json()
    assert body["object"] == "chat.completion"
    assert body["system_fingerprint"] == "fp_scripted"
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": "hello", "refusal": None}
    assert (choice["finish_reason"], choice["stop_reason"], choice["logprobs"]) == ("stop", None, None)
    assert choice["token_ids"] == [*b"hello", EOS]
    assert bytes(body["prompt_token_ids"]) == b"user: hi\nassistant: "
    check_usage(body["usage"])


def test_a_whole_completion_answer_with_echo(scripted: Scripted) -> None:
    body = scripted.complete(prompt=["a", [98]], n=2, echo=True, return_token_ids=True, max_tokens=3).json()
    assert body["object"] == "text_completion"
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in body["choices"]] == ["ahel", "ahel", "bhel", "bhel"]
    assert [choice["prompt_token_ids"] for choice in body["choices"]] == [[97], [97], [98], [98]]
    assert {choice["finish_reason"] for choice in body["choices"]} == {"length"}
    assert body["usage"]["prompt_tokens"] == 2
    assert body["usage"]["completion_tokens"] == 12
    check_usage(body["usage"])


def test_echo_streams_the_prompt_first(scripted: Scripted) -> None:
    stream = read_stream(scripted.complete(prompt="abc", echo=True, stream=True).content, chat=False)
    assert stream.choices[0].pieces[0] == "abc"
    assert stream.choices[0].text == "abchello"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("max_tokens", [0, 3])
def test_echo_with_logprobs_scores_the_prompt_too(scripted: Scripted, stream: bool, max_tokens: int) -> None:
    """As evaluation harnesses read it: four lists over prompt and answer, nothing known of the first token."""
    reply = scripted.complete(prompt=["é!", [97, EOS, 98]], echo=True, logprobs=1, max_tokens=max_tokens, stream=stream)
    answer = "hel"[:max_tokens]
    if stream:
        read = read_stream(reply.content, n=2, chat=False).choices
        texts = [read[index].text for index in range(2)]
        lists = [
            {
                key: list(chain.from_iterable(part[key] for part in read[index].logprobs))
                for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
            }
            for index in range(2)
        ]
    else:
        choices = reply.json()["choices"]
        texts, lists = [one["text"] for one in choices], [one["logprobs"] for one in choices]
        assert reply.json()["usage"]["completion_tokens"] == 2 * max_tokens
        assert {one["finish_reason"] for one in choices} == {"length"}
    assert texts == ["é!" + answer, "ab" + answer]
    assert lists[0]["tokens"] == ["\ufffd", "\ufffd", "!", *answer]
    assert lists[1]["tokens"] == ["a", "<|end|>", "b", *answer]
    assert lists[0]["token_logprobs"] == [None, -0.25, -0.25, *[-0.5] * max_tokens]
    assert lists[0]["top_logprobs"][0] is None
    assert lists[1]["top_logprobs"][2] == {"c": -1.25, "b": -0.25}
    assert lists[0]["text_offset"] == [0, 0, 1, 2, 3, 4][: 3 + max_tokens]
    assert lists[1]["text_offset"] == [0, 1, 1, 2, 3, 4][: 3 + max_tokens]
    assert {one.sampling.prompt_logprobs for one in scripted.service.calls} == {1}


@pytest.mark.parametrize("stream", [False, True])
def test_prompt_logprobs_by_token_id_with_rank(scripted: Scripted, stream: bool) -> None:
    expected = [
        None,
        {
            "106": {"logprob": -1.25, "rank": 1, "decoded_token": "j"},
            "105": {"logprob": -0.25, "rank": 1, "decoded_token": "i"},
        },
    ]  # fmt: skip
    reply = scripted.complete(prompt="hi", prompt_logprobs=1, stream=stream, n=2)
    if stream:
        chunks = read_stream(reply.content, n=2, chat=False).chunks
        shown = [one["prompt_logprobs"] for chunk in chunks for one in chunk["choices"] if "prompt_logprobs" in one]
    else:
        shown = [one["prompt_logprobs"] for one in reply.json()["choices"]]
    assert shown == [expected, expected]
    reply = scripted.chat(prompt_logprobs=0, stream=stream)
    body = read_stream(reply.content).chunks[0] if stream else reply.json()
    assert body["prompt_logprobs"][1] == {"115": {"logprob": -0.25, "rank": 1, "decoded_token": "s"}}
    assert "prompt_logprobs" not in scripted.chat().json()


def test_log_probabilities_of_a_prompt_are_bounded(scripted: Scripted) -> None:
    reply = scripted.complete(prompt=["x" * 2000] * 10, prompt_logprobs=20)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "prompt_logprobs"
    for stream in (True, False):
        assert scripted.complete(prompt="x" * 2000, prompt_logprobs=5, stream=stream).status_code == 200


def test_nothing_to_generate_needs_an_echo(scripted: Scripted) -> None:
    assert scripted.complete(max_tokens=0).json()["error"]["param"] == "max_tokens"
    assert scripted.chat(max_tokens=0).status_code == 400
    assert scripted.complete(max_tokens=-1, echo=True).status_code == 400


def test_special_tokens_are_shown_if_asked_for(scripted: Scripted) -> None:
    scripted.service.script = say(b"ab", stop_id=None)
    assert scripted.complete(max_tokens=2).json()["choices"][0]["text"] == "ab"

    async def script(request: Request) -> AsyncIterator[Output]:
        yield Output((97, EOS, 98), finished="length")

    scripted.service.script = script
    body = {"ignore_eos": True, "max_tokens": 3}
    assert scripted.complete(**body).json()["choices"][0]["text"] == "ab"
    assert scripted.complete(**body, skip_special_tokens=False).json()["choices"][0]["text"] == "a<|end|>b"


@pytest.mark.parametrize("stream", [False, True])
def test_timings_are_in_the_body_on_request(scripted: Scripted, stream: bool) -> None:
    for reply, chat in (
        (scripted.complete(timings=True, stream=stream), False),
        (scripted.chat(timings=True, stream=stream), True),
    ):
        body = read_stream(reply.content, chat=chat).chunks[-1] if stream else reply.json()
        timings = body["timings"]
        assert (timings["queue_s"], timings["prefill_s"], timings["decode_s"]) == (0.001, 0.002, 0.003)
        assert timings["mean_gap_s"] == pytest.approx(0.003 / 5)
        assert timings["first_token_s"] > 0
        assert (timings["cached_tokens"], timings["completion_tokens"]) == (min(3, timings["prompt_tokens"]), 6)
    assert "timings" not in scripted.complete().json()


def test_an_ordinary_stop_id_ends_the_text_before_it_and_is_named(scripted: Scripted) -> None:
    scripted.service.script = say("hi!", stop_id=ord("?"))
    choice = scripted.complete(stop_token_ids=[ord("?")]).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("hi!", "stop", ord("?"))
    kept = scripted.complete(stop_token_ids=[ord("?")], include_stop_str_in_output=True).json()["choices"][0]
    assert kept["text"] == "hi!?"


def test_a_stop_string_in_the_middle_of_an_output_cuts_text_tokens_and_usage(scripted: Scripted) -> None:
    scripted.service.script = say("abc END def", tokens_per_output=100)
    body = scripted.complete(stop="END", return_token_ids=True, max_tokens=50).json()
    choice = body["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("abc ", "stop", "END")
    assert bytes(choice["token_ids"]) == b"abc END"
    assert body["usage"]["completion_tokens"] == 7


def test_the_stop_string_is_shown_if_asked_for(scripted: Scripted) -> None:
    scripted.service.script = say("abc END def")
    choice = scripted.complete(stop="END", include_stop_str_in_output=True, max_tokens=50).json()["choices"][0]
    assert choice["text"] == "abc END"


def test_cached_tokens_are_told_also_when_a_stop_string_ends_the_answer(scripted: Scripted) -> None:
    async def script(request: Request) -> AsyncIterator[Output]:
        yield Output((97,), cached_tokens=2)
        yield Output((46,), cached_tokens=2)

    scripted.service.script = script
    assert scripted.complete(stop=".").json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 2


def test_min_tokens_delays_stop_strings(scripted: Scripted) -> None:
    scripted.service.script = say("a.b.c.d")
    choice = scripted.complete(stop=".", min_tokens=3).json()["choices"][0]
    assert (choice["text"], choice["stop_reason"]) == ("a.b", ".")


def test_text_that_was_held_back_for_a_stop_string_comes_out_at_the_end(scripted: Scripted) -> None:
    scripted.service.script = say("abcEN")
    choice = scripted.complete(stop="END").json()["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("abcEN", "stop", None)


@pytest.mark.parametrize("stream", [False, True])
def test_chat_logprobs(scripted: Scripted, stream: bool) -> None:
    scripted.service.script = say("aé")
    reply = scripted.chat(logprobs=True, top_logprobs=2, stream=stream)
    if stream:
        content = read_stream(reply.content).choices[0].logprobs
    else:
        content = reply.json()["choices"][0]["logprobs"]["content"]
    assert [one["token"] for one in content] == ["a", "\ufffd", "\ufffd", "<|end|>"]
    assert content[0] == {
        "token": "a", "logprob": -0.5, "bytes": [97],
        "top_logprobs": [
            {"token": "a", "logprob": -0.5, "bytes": [97]}, {"token": "b", "logprob": -1.5, "bytes": [98]},
        ],
    }  # fmt: skip
    assert bytes(chain.from_iterable(one["bytes"] for one in content[:-1])).decode() == "aé"


@pytest.mark.parametrize("stream", [False, True])
def test_legacy_logprobs(scripted: Scripted, stream: bool) -> None:
    scripted.service.script = say("aéz")
    reply = scripted.complete(logprobs=1, stream=stream)
    if stream:
        parts = read_stream(reply.content, chat=False).choices[0].logprobs
        merged = {key: list(chain.from_iterable(part[key] for part in parts)) for key in parts[0]}
    else:
        merged = reply.json()["choices"][0]["logprobs"]
    assert merged["tokens"] == ["a", "\ufffd", "\ufffd", "z", "<|end|>"]
    assert merged["token_logprobs"] == [-0.5] * 5
    assert merged["top_logprobs"][0] == {"a": -0.5}
    assert merged["text_offset"] == [0, 1, 1, 2, 3]


def test_zero_logprobs_still_gives_the_chosen_tokens(scripted: Scripted) -> None:
    assert scripted.complete(logprobs=0).json()["choices"][0]["logprobs"]["token_logprobs"] == [-0.5] * 6
    assert scripted.chat(logprobs=True).json()["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


def test_minus_infinity_is_a_number_in_json(scripted: Scripted) -> None:
    async def script(request: Request) -> AsyncIterator[Output]:
        yield Output((97,), (TokenLogprobs(float("-inf"), ((98, 0.0),)),), finished="length")

    scripted.service.script = script
    assert scripted.complete(logprobs=1).json()["choices"][0]["logprobs"]["token_logprobs"] == [-9999.0]


def test_developer_is_system_and_text_parts_are_joined(scripted: Scripted) -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    scripted.chat(messages=[{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}])
    assert bytes(scripted.service.calls[0].prompt) == b"system: be brief\nuser: one two\nassistant: "


def test_a_begun_answer_goes_on(scripted: Scripted) -> None:
    scripted.service.script = say(" is long")
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "The river"}]
    reply = scripted.chat(messages=messages, continue_final_message=True, add_generation_prompt=False)
    assert reply.json()["choices"][0]["message"]["content"] == " is long"
    prompt = bytes(scripted.service.calls[-1].prompt)
    assert prompt == b"user: hi\nassistant: The river"
    counted = scripted.http.post("/tokenize", json={"messages": messages, "continue_final_message": True}).json()
    assert counted["tokens"] == list(prompt)
    both = scripted.chat(messages=messages, continue_final_message=True, add_generation_prompt=True)
    assert both.json()["error"]["param"] == "add_generation_prompt"
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages[1] |= {"tool_calls": [call]}
    assert scripted.chat(messages=messages, continue_final_message=True).status_code == 400


def test_unknown_fields_are_ignored_and_counted_once_per_request(scripted: Scripted) -> None:
    for _ in range(2):
        assert scripted.complete(frobnicate=1, **{"x y": 2}).status_code == 200
    shown = scripted.http.get("/metrics").text
    assert 'penstock_unknown_fields_total{field="frobnicate"} 2.0' in shown
    assert 'penstock_unknown_fields_total{field="x_y"} 2.0' in shown


class Threads:
    """Stands in for a function: notes the name of the thread it is called in."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.names = function, list[str]()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.names.append(threading.current_thread().name)
        return self.function(*args, **kwargs)


def test_a_big_prompt_is_tokenised_off_the_event_loop_with_the_same_result(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = Threads(Tokenizer.encode)
    monkeypatch.setattr(Tokenizer, "encode", lambda *args, **kwargs: threads(*args, **kwargs))
    for characters, chat in ((10, False), (INLINE_CHARACTERS + 1, False), (10, True), (INLINE_CHARACTERS, True)):
        threads.names.clear()
        text = "x" * characters
        if chat:  # the body has more characters than its one message
            reply = scripted.chat(messages=[{"role": "user", "content": text}], max_tokens=5)
            expected = len(f"user: {text}\nassistant: ")
        else:
            reply = scripted.complete(prompt=text, max_tokens=5)
            expected = characters
        assert reply.json()["usage"]["prompt_tokens"] == expected
        off = [name.startswith("penstock-text") for name in threads.names]
        assert off == [characters >= INLINE_CHARACTERS], threads.names


@pytest.mark.parametrize("chat", [True, False])
def test_many_logprobs_are_written_off_the_event_loop_with_the_same_result(
    scripted: Scripted, loop: Loop, monkeypatch: pytest.MonkeyPatch, *, chat: bool
) -> None:
    scripted.service.script = say("a" * 20)
    if chat:
        threads = Threads(chat_logprobs)
        monkeypatch.setattr("penstock.serve.chat_format.chat_logprobs", threads)
    else:
        threads = Threads(LegacyLogprobs.of)
        monkeypatch.setattr(LegacyLogprobs, "of", lambda *args: threads(*args))

    def ask(n: int) -> list[Any]:
        threads.names.clear()
        asked = {"logprobs": True, "top_logprobs": 4} if chat else {"logprobs": 4}
        reply = (scripted.chat if chat else scripted.complete)(max_tokens=32, n=n, **asked)
        return [one["logprobs"] for one in reply.json()["choices"]]

    (one,) = ask(1)
    assert threads.names == [loop.thread.name]
    assert ask(6) == [one] * 6  # 21 tokens of 5 entries each: over INLINE_LOGPROBS
    assert len(threads.names) == 6
    assert loop.thread.name not in threads.names


def test_models_are_listed(scripted: Scripted) -> None:
    (model,) = scripted.http.get("/v1/models").json()["data"]
    assert (model["id"], model["max_model_len"], model["object"]) == ("scripted", 4096, "model")
    assert scripted.http.get("/v1/models/scripted").json() == model

"""End to end: the model in the box, in its worker process, behind a real server, asked by the official client."""

from __future__ import annotations

import os
import signal
import socket
import time

from openai.types.chat import ChatCompletionMessageParam

from penstock.control.request import Request, Sampling

from .conftest import Real
from .sse import check_usage, read_stream

USER: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Tell me about rivers."}]


def test_a_greedy_stream_is_the_engines_output(real: Real) -> None:
    prompt = real.tokenizer.encode("The river", add_special_tokens=True)
    expected = real.outputs(Request(id="direct", prompt=tuple(prompt), max_tokens=12, sampling=Sampling(temperature=0)))
    body = {"prompt": "The river", "max_tokens": 12, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    stream = read_stream(real.http.post("/v1/completions", json=body | {"stream": True}).content, chat=False)
    assert stream.choices[0].token_ids == expected
    whole = real.http.post("/v1/completions", json=body).json()["choices"][0]
    assert whole["token_ids"] == expected
    assert whole["text"] == stream.choices[0].text == real.tokenizer.decode(expected)
    again = real.http.post("/v1/completions", json=body | {"prompt": prompt}).json()["choices"][0]
    assert again["token_ids"] == expected


def test_chat_through_the_official_client(real: Real) -> None:
    reply = real.openai.chat.completions.create(
        model="millrace", messages=USER, max_completion_tokens=8, temperature=0, logprobs=True, top_logprobs=2, n=2
    )
    assert reply.choices[0].message.content == reply.choices[1].message.content
    assert reply.choices[0].logprobs is not None
    content = reply.choices[0].logprobs.content
    assert content is not None
    assert all(one.top_logprobs[0].logprob >= one.logprob for one in content)
    chunks = real.openai.chat.completions.create(
        model="millrace",
        messages=USER,
        max_tokens=8,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    text, usage = "", None
    for chunk in chunks:
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
        usage = chunk.usage or usage
    assert text == reply.choices[0].message.content
    assert usage is not None


def test_a_prompt_seen_before_is_reported_as_cached(real: Real) -> None:
    body = {"prompt": "All the rivers of the world " * 8, "max_tokens": 2, "ignore_eos": True}
    first = real.http.post("/v1/completions", json=body).json()["usage"]
    second = real.http.post("/v1/completions", json=body).json()["usage"]
    other_salt = real.http.post("/v1/completions", json=body | {"cache_salt": "other"}).json()["usage"]
    for usage in (first, second, other_salt):
        check_usage(usage)
    assert first["prompt_tokens_details"]["cached_tokens"] == 0
    assert second["prompt_tokens_details"]["cached_tokens"] >= 16
    assert other_salt["prompt_tokens_details"]["cached_tokens"] == 0


def test_a_seed_gives_the_same_tokens_and_choices_differ(real: Real) -> None:
    body = {"prompt": "Once", "max_tokens": 12, "temperature": 1.5, "seed": 11, "n": 3, "ignore_eos": True}
    first = [one["text"] for one in real.http.post("/v1/completions", json=body).json()["choices"]]
    second = [one["text"] for one in real.http.post("/v1/completions", json=body).json()["choices"]]
    alone = real.http.post("/v1/completions", json=body | {"n": 1}).json()["choices"][0]["text"]
    assert first == second
    assert len(set(first)) == 3
    assert alone == first[0]


def test_a_stop_string_ends_the_request_in_the_worker(real: Real) -> None:
    body = {"prompt": "The", "max_tokens": 1500, "temperature": 0, "ignore_eos": True}
    text = real.http.post("/v1/completions", json=body | {"max_tokens": 20}).json()["choices"][0]["text"]
    stop = text[len(text) // 2 :][:3]
    reply = real.http.post("/v1/completions", json=body | {"stop": stop}).json()["choices"][0]
    assert (reply["finish_reason"], reply["stop_reason"]) == ("stop", stop)
    assert reply["text"] == text[: text.index(stop)]


def test_an_answer_that_a_stop_string_cuts_still_tells_what_was_cached(real: Real) -> None:
    body = {"model": "millrace", "prompt": "The river ran past the old mill, and the miller " * 6, "max_tokens": 40,
            "temperature": 0, "ignore_eos": True}  # fmt: skip
    whole = real.http.post("/v1/completions", json=body).json()["choices"][0]["text"]
    reply = real.http.post("/v1/completions", json=body | {"stop": whole[8:12]}).json()
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert reply["usage"]["prompt_tokens_details"]["cached_tokens"] >= 16
    assert real.service.in_flight == 0


def test_logit_bias_and_penalties_reach_the_engine(real: Real) -> None:
    body = {"prompt": "The", "max_tokens": 5, "ignore_eos": True, "return_token_ids": True, "temperature": 0}
    forced = real.http.post("/v1/completions", json=body | {"logit_bias": {"77": 100}}).json()["choices"][0]
    assert forced["token_ids"] == [77] * 5
    varied = real.http.post(
        "/v1/completions",
        json=body | {"logit_bias": {"77": 100, "78": 100}, "frequency_penalty": 2, "max_tokens": 20},
    ).json()["choices"][0]
    assert set(varied["token_ids"]) == {77, 78}  # whichever the model likes less gets its turn


def test_sequences_side_by_side_each_get_their_own_text(real: Real) -> None:
    prompts = [f"Number {n} " for n in range(8)]
    body = {"max_tokens": 6, "temperature": 0, "ignore_eos": True}
    alone = [
        real.http.post("/v1/completions", json=body | {"prompt": prompt}).json()["choices"][0]["text"]
        for prompt in prompts
    ]
    raw = real.http.post("/v1/completions", json=body | {"prompt": prompts, "stream": True}).content
    stream = read_stream(raw, n=8, chat=False)
    assert [stream.choices[index].text for index in range(8)] == alone


def test_a_client_that_leaves_frees_the_worker(real: Real) -> None:
    host, port = real.url.removeprefix("http://").split(":")
    body = b'{"prompt":"x","max_tokens":1900,"ignore_eos":true,"n":3,"stream":true}'
    with socket.create_connection((host, int(port))) as client:
        client.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%s" % (len(body), body)
        )
        seen = b""
        while seen.count(b"data: ") < 6:
            seen += client.recv(65536)
        assert real.service.in_flight == 3
    # A later request is answered by steps that no longer hold the three: its own is then the only one.
    while real.service.in_flight:
        assert real.http.get("/health").status_code == 200
    real.http.post("/v1/completions", json={"prompt": "y", "max_tokens": 2, "ignore_eos": True})
    while real.service.statistics.running:
        assert real.http.get("/health").status_code == 200
    assert real.service.statistics.cancelled >= 3


def test_a_call_larger_than_the_whole_queue_is_400_and_leaves_nothing_behind(real: Real) -> None:
    body = {"prompt": ["x"] * 41, "max_tokens": 2}
    reply = real.http.post("/v1/completions", json=body)
    assert reply.status_code == 400  # no retry could ever succeed, so it is no 429
    assert reply.json()["error"]["param"] == "prompt"
    assert real.service.in_flight == 0
    assert real.http.post("/v1/completions", json=body | {"prompt": ["x"] * 40}).status_code == 200


def test_killing_the_worker_in_the_middle_of_a_stream_is_a_pause_and_nothing_else(real: Real) -> None:
    body = {"prompt": "The river", "max_tokens": 120, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    undisturbed = real.http.post("/v1/completions", json=body).json()["choices"][0]["token_ids"]
    raw = b""
    with real.http.stream("POST", "/v1/completions", json=body | {"stream": True}) as reply:
        for part in reply.iter_raw():
            if not raw:
                pid = real.service.worker_pid
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
            raw += part
    assert read_stream(raw, chat=False).choices[0].token_ids == undisturbed
    while not real.service.restarts:  # it may have been done with the stream when it was killed
        time.sleep(0.01)
    assert real.http.get("/ready").json()["restarts"] == 1
    assert "penstock_worker_restarts_total 1.0" in real.http.get("/metrics").text


def test_metrics_count_what_happened(real: Real) -> None:
    real.http.post("/v1/completions", json={"prompt": [5, 6, 7], "max_tokens": 4, "ignore_eos": True})
    shown = real.http.get("/metrics").text
    values = {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in shown.splitlines()
        if not line.startswith("#")
    }
    label = '{engine="0",model_name="millrace"}'
    names = {name.partition("{")[0] for name in values}
    assert values[f"vllm:generation_tokens_total{label}"] >= 4
    assert values[f"vllm:iteration_tokens_total_count{label}"] >= 4
    assert "vllm:cache_config_info" in names
    assert any(name.startswith("vllm:request_success_total") and "length" in name and values[name] for name in values)
    assert real.http.get("/ready").status_code == 200

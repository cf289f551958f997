"""Refusals (SERVING-CHECKLIST sections 2, 5 and 10): shape, status, headers, and what the message says."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from penstock.control.request import Request
from penstock.engine.tokenizer import Tokenizer
from penstock.errors import DeadlinePassed, InvalidRequest, Overloaded, PenstockError, RequestFailed, Unavailable
from penstock.observe.logs import JsonLines
from penstock.runtime.facts import Output
from penstock.serve import front
from penstock.serve.body import MAX_UNKNOWN_NAMES, parse_body
from penstock.serve.schema import CompletionBody

from .conftest import Scripted
from .scripted import raising


def error_of(reply: httpx.Response) -> dict[str, Any]:
    assert set(reply.json()) == {"error"}
    error: dict[str, Any] = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert reply.headers["x-request-id"]
    return error


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"min_p": -0.1}, "min_p"),
        ({"top_k": -2}, "top_k"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 2.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 10**400}, "seed"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": 1e-40}, "repetition_penalty"),
        ({"logit_bias": {"5": 101}}, "logit_bias[...]"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"257": 1}}, "logit_bias"),
        ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": "x" * 257}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"stop_token_ids": [300]}, "stop_token_ids"),
        ({"min_tokens": 20, "max_tokens": 10}, "min_tokens"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"metadata": {str(i): "v" for i in range(17)}}, "metadata"),
        ({"metadata": {"k": "v" * 513}}, "metadata[...]"),
        ({"metadata": {"k" * 65: "v"}}, "metadata"),
        ({"user": "a\0b"}, "user"),
        ({"metadata": {"a": ["\0"]}}, "metadata"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.name"),
        ({"best_of": 3}, "best_of"),
        ({"cache_salt": ""}, "cache_salt"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_value_out_of_bounds_is_400_and_names_the_field(
    scripted: Scripted, path: str, body: dict[str, Any], param: str
) -> None:
    required = {"prompt": "x"} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "x"}]}
    reply = scripted.http.post(path, json=required | body)
    assert reply.status_code == 400, reply.text
    error = error_of(reply)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert "Remedy" in error["message"]
    assert not scripted.service.calls


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"n": 40}, "n = 40: this server allows at most 16. Remedy: 16 or fewer, or a higher server.limits.n"),
        ({"n": 129}, "n = 129: it is out of bounds. Remedy: int <= 128"),
        ({"n": "many"}, "n = 'many': it is of type str. Remedy: int"),
        ({"stop": ["x"] * 17}, "stop = '17 strings': this server allows at most 16 strings"),
        ({"stop": ["x"] * 65}, "Remedy: array of length <= 64"),
        ({"stop": 5}, "stop = 5: it is of type int. Remedy: str | array"),
    ],
)
def test_a_refusal_says_what_came_and_what_is_allowed(scripted: Scripted, body: dict[str, Any], message: str) -> None:
    assert message in error_of(scripted.complete(**body))["message"]


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "king", "content": "x"}], "messages[0].role"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}],
            "messages[0].content[0]",
        ),
        ([{"role": "tool", "content": "x", "tool_call_id": "1"}], "messages[0].tool_call_id"),
        ([{"role": "user", "content": "x"}] * 4097, "messages"),
        ("hello", "messages"),
        (None, "messages"),
    ],
)
def test_messages_that_make_no_sense_are_400(scripted: Scripted, messages: Any, param: str) -> None:
    reply = scripted.chat(messages=messages)
    assert reply.status_code == 400, reply.text
    assert error_of(reply)["param"] == param


def test_a_value_of_few_is_told_which_there_are(scripted: Scripted) -> None:
    role = error_of(scripted.chat(messages=[{"role": "king", "content": "x"}]))
    allowed = "it is none of the values allowed. Remedy: assistant, developer, system, tool, user"
    assert role["message"] == f"messages[0].role = 'king': {allowed}"
    form = error_of(scripted.http.post("/v1/embeddings", json={"input": "x", "encoding_format": "hex"}))
    assert form["message"].endswith("Remedy: base64, float")


@pytest.mark.parametrize("text", ["\\ud83d", "\\ude00", "\\ud83d\\ud83d\\ude00", "\\\\\\ud83d", "\\uD83Dx"])
def test_half_a_surrogate_pair_is_called_by_its_name(scripted: Scripted, text: str) -> None:
    for body in (f'{{"prompt": "{text}"}}', f'{{"prompt": "x", "user": "{text}"}}'):
        reply = scripted.http.post("/v1/completions", content=body, headers={"content-type": "application/json"})
        assert "half a surrogate pair" in error_of(reply)["message"], reply.text
    fine = '{"prompt": "\\ud83d\\ude00 \\\\ud83d", "max_tokens": 1}'
    reply = scripted.http.post("/v1/completions", content=fine, headers={"content-type": "application/json"})
    assert reply.status_code == 200
    broken = scripted.http.post("/v1/completions", content=fine[:-1], headers={"content-type": "application/json"})
    assert "surrogate" not in error_of(broken)["message"]


@pytest.mark.parametrize(
    "extra",
    [
        {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required"},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"modalities": ["audio"]},
        {"structured_outputs": {"structural_tag": "{}"}},
        {"chat_template": "{{ 1 }}"},
        {"lora_path": "tuned"},
        {"continue_final_message": True},
        {"include_reasoning": False},
        {"return_tokens_as_token_ids": True, "logprobs": True},
        {"chat_template_kwargs": {"tools": []}},
        {"top_logprobs": 3},
        {"logprobs": True, "top_logprobs": 21},
    ],
)
def test_an_option_that_would_change_the_answer_is_refused_not_ignored(
    scripted: Scripted, extra: dict[str, Any]
) -> None:
    reply = scripted.chat(**extra)
    assert reply.status_code == 400, reply.text
    assert error_of(reply)["param"].split(".")[0] in extra
    assert not scripted.service.calls


@pytest.mark.parametrize(
    "extra",
    [
        {"tools": [], "tool_choice": "auto"},
        {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none"},
        {"response_format": {"type": "text"}, "store": True, "service_tier": "auto", "user": "me"},
        {"temperature": None, "stop": None, "n": None, "stream": None, "tools": None, "logit_bias": None},
        {"priority": 3, "cache_salt": "pepper", "metadata": {"a": "b"}},
        {"include_reasoning": True, "separate_reasoning": True, "lora_path": None, "no_stop_trim": False},
    ],
)
def test_an_option_that_changes_nothing_is_accepted(scripted: Scripted, extra: dict[str, Any]) -> None:
    assert scripted.chat(**extra).status_code == 200


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"[]", "invalid_json"),
        (b'{"prompt": NaN}', "invalid_json"),
        (b'{"prompt": "x", "temperature": NaN}', "invalid_json"),
        (b'{"prompt": "x", "temperature": Infinity}', "invalid_json"),
        (b'{"prompt": "x", "temperature": 1e999}', "invalid_value"),
        (b'{"prompt": "\\ud800"}', "invalid_json"),
        (b'{"prompt": "\xff"}', "invalid_json"),
        (b'{"prompt": "a\\u0000b"}', "invalid_value"),
        (b'{"prompt": "x", "a\\u0000b": 1}', "invalid_value"),
        (b'{"prompt": "x\\\\\\u0000"}', "invalid_value"),
        (b'{"prompt": ' + b"[" * 100_000, "invalid_json"),
        (b"{}", "missing_required_parameter"),
        (b'{"prompt": ""}', "invalid_value"),
        (b'{"prompt": []}', "invalid_value"),
        (b'{"prompt": [[]]}', "invalid_value"),
        (b'{"prompt": [1, "a"]}', "invalid_value"),
        (b'{"prompt": [300]}', "invalid_value"),
        (b'{"prompt": [-1]}', "invalid_value"),
        (b'{"prompt": [1.5]}', "invalid_type"),
    ],
)
def test_bytes_that_are_no_request_are_400(scripted: Scripted, raw: bytes, code: str) -> None:
    reply = scripted.http.post("/v1/completions", content=raw, headers={"content-type": "application/json"})
    assert reply.status_code == 400, reply.text
    assert error_of(reply)["code"] == code


def test_numbers_of_any_size_inside_free_form_fields_are_no_bug_of_ours(scripted: Scripted) -> None:
    calls = [{"id": "1", "n": 10**400, "function": {"name": "f", "arguments": {"n": 10**400}}}]
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "tool_calls": calls}]
    assert scripted.chat(messages=messages).status_code == 200
    assert error_of(scripted.chat(user="\0", nonsense=10**400))["param"] == "user"
    assert scripted.chat(chat_template_kwargs={"thinking": 10**400}).status_code in (200, 400)


def test_a_text_that_spells_an_escaped_nul_is_only_text(scripted: Scripted) -> None:
    assert scripted.complete(prompt="\\u0000 and \\\\u0000").status_code == 200


@pytest.mark.parametrize("backslashes", range(1, 9))
def test_nul_is_an_odd_run_of_backslashes(backslashes: int) -> None:
    raw = b'{"prompt": "a' + b"\\" * backslashes + b'u0000"}'
    if backslashes % 2 == 0:
        assert parse_body(raw, CompletionBody, print).prompt == "a" + "\\" * (backslashes // 2) + "u0000"
        return
    with pytest.raises(InvalidRequest, match="NUL") as caught:
        parse_body(raw, CompletionBody, print)
    assert caught.value.field == "prompt"


@pytest.mark.parametrize("nested", [["x"] * 50_000 + ["\0"], {**dict.fromkeys(map(str, range(50_000))), "z": "\0"}])
def test_nul_deep_in_a_huge_body_is_refused_without_a_search_to_the_end(nested: object) -> None:
    with pytest.raises(InvalidRequest, match="NUL"):
        parse_body(json.dumps({"prompt": "x", "nonsense": nested}).encode(), CompletionBody, print)


def test_of_a_body_full_of_unknown_names_64_are_counted() -> None:
    counted: list[str] = []
    raw = json.dumps({"prompt": "x"} | {f"made_up_{number}": 1 for number in range(10_000)}).encode()
    assert parse_body(raw, CompletionBody, counted.append).prompt == "x"
    assert len(counted) == len(set(counted)) == MAX_UNKNOWN_NAMES == 64


def test_a_million_token_ids_are_refused_before_anything_walks_over_them(scripted: Scripted) -> None:
    assert error_of(scripted.complete(prompt=[1] * 1_000_000))["code"] == "context_length_exceeded"


def test_more_than_64_prompts_are_400(scripted: Scripted) -> None:
    assert error_of(scripted.complete(prompt=["a"] * 65))["param"] == "prompt"


def test_more_than_5_legacy_logprobs_are_400(scripted: Scripted) -> None:
    assert scripted.complete(logprobs=5).status_code == 200
    assert error_of(scripted.complete(logprobs=6))["param"] == "logprobs"


def test_prompt_and_max_tokens_over_the_context_name_both_numbers(scripted: Scripted) -> None:
    reply = scripted.complete(prompt="x" * 100, max_tokens=4000)
    assert reply.status_code == 400
    error = error_of(reply)
    assert error["code"] == "context_length_exceeded"
    assert error["param"] == "max_tokens"
    assert "100" in error["message"]
    assert "4000" in error["message"]
    assert "4096" in error["message"]
    too_long = scripted.chat(messages=[{"role": "user", "content": "x" * 5000}])
    assert error_of(too_long)["code"] == "context_length_exceeded"
    assert error_of(too_long)["param"] == "messages"


@pytest.mark.parametrize("role", ["user", "assistant"])
def test_a_prompt_that_cannot_fit_is_refused_and_never_tokenised(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    def encode(*_: object, **__: object) -> list[int]:
        raise AssertionError("it was tokenised")

    monkeypatch.setattr(Tokenizer, "encode", encode)
    text = "some text " * 700_000
    for reply, param in (
        (scripted.complete(prompt=["x" * 100_000, text]), "prompt"),
        (scripted.chat(messages=[{"role": role, "content": text}]), "messages"),
    ):
        assert reply.status_code == 400
        error = error_of(reply)
        assert (error["code"], error["param"]) == ("context_length_exceeded", param)
        assert "the context is 4096 tokens" in error["message"]
        assert "fewer than 4096 tokens" in error["message"]


def test_an_unknown_model_is_404_and_lists_the_models(scripted: Scripted) -> None:
    for reply in (
        scripted.complete(model="gpt-9"),
        scripted.chat(model="gpt-9"),
        scripted.http.get("/v1/models/gpt-9"),
    ):
        assert reply.status_code == 404
        error = error_of(reply)
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        assert "scripted" in error["message"]


def test_unknown_paths_and_methods_have_the_same_shape(scripted: Scripted) -> None:
    assert error_of(scripted.http.get("/v2/nothing"))["code"] == "not_found"
    assert "server.admin_port" in error_of(scripted.http.post("/v1/load_lora_adapter", json={}))["message"]
    assert "POST /v1/completions" in error_of(scripted.http.post("/generate", json={}))["message"]
    wrong = scripted.http.get("/v1/completions")
    assert wrong.status_code == 405
    assert wrong.headers["allow"] == "POST"
    assert error_of(wrong)["code"] == "method_not_allowed"
    wrong = scripted.http.delete("/v1/models")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET, HEAD")


def test_a_body_over_the_limit_is_413(scripted: Scripted) -> None:
    reply = scripted.complete(prompt="x" * 8_000_001)
    assert reply.status_code == 413
    assert error_of(reply)["code"] == "request_too_large"


def test_a_form_is_not_json(scripted: Scripted) -> None:
    reply = scripted.http.post("/v1/completions", content=b"{}", headers={"content-type": "text/plain"})
    assert reply.status_code == 415
    error_of(reply)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "type_", "code"),
    [
        (Overloaded("full", retry_after_s=2.3), 429, "rate_limit_error", "server_overloaded"),
        (Unavailable("draining", retry_after_s=2.3), 503, "service_unavailable_error", "service_unavailable"),
        (DeadlinePassed("no token", retry_after_s=2.3), 408, "invalid_request_error", "deadline_passed"),
    ],
)
def test_overload_and_unavailability_say_when_to_come_back(
    scripted: Scripted, stream: bool, error: PenstockError, status: int, type_: str, code: str
) -> None:
    scripted.service.script = raising(error)
    reply = scripted.chat(stream=stream)
    assert reply.status_code == status
    assert (error_of(reply)["type"], error_of(reply)["code"]) == (type_, code)
    assert reply.headers["retry-after"] == "3"
    assert reply.headers["retry-after-ms"] == "2300"
    assert error_of(reply)["message"] == f"{error}. Remedy: come back in 2.30 s"


def test_the_worker_may_refuse_a_request_too(scripted: Scripted) -> None:
    scripted.service.script = raising(
        InvalidRequest(field="prompt", value=1, why="w", remedy="r", code="context_length_exceeded")
    )
    reply = scripted.complete()
    assert reply.status_code == 400
    assert error_of(reply)["code"] == "context_length_exceeded"


def logged_under(caplog: pytest.LogCaptureFixture, reply: httpx.Response) -> logging.LogRecord:
    """The one error in the log; it names the request id of the answer, in the text and as a field."""
    errors = [one for one in caplog.records if one.name == "penstock.serve" and one.levelno == logging.ERROR]
    (record,) = [one for one in errors if " refused " not in one.getMessage()]
    assert reply.headers["x-request-id"] in record.getMessage()
    assert json.loads(JsonLines().format(record))["request_id"] == reply.headers["x-request-id"]
    return record


def test_a_bug_is_500_in_the_same_shape_and_tells_nothing(scripted: Scripted, caplog: pytest.LogCaptureFixture) -> None:
    scripted.service.script = raising(KeyError("secret"))
    reply = scripted.complete()
    assert reply.status_code == 500
    assert error_of(reply)["type"] == "server_error"
    assert "secret" not in reply.text
    record = logged_under(caplog, reply)
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], KeyError)


def test_a_request_that_fails_is_in_the_log_under_its_id(scripted: Scripted, caplog: pytest.LogCaptureFixture) -> None:
    scripted.service.script = raising(RequestFailed("the sampler gave up"))
    reply = scripted.complete()
    assert (reply.status_code, error_of(reply)["code"]) == (500, "request_failed")
    assert "the sampler gave up" in logged_under(caplog, reply).getMessage()


def test_a_bug_before_generation_has_an_id_too(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("secret")

    monkeypatch.setattr(front, "make_sampling", broken)
    reply = scripted.complete()
    assert reply.status_code == 500
    assert error_of(reply)["code"] == "internal_error"
    assert "secret" not in reply.text
    assert logged_under(caplog, reply).exc_info is not None
    monkeypatch.undo()
    assert scripted.complete().status_code == 200


def test_a_cancellation_by_the_server_is_a_clean_error(scripted: Scripted) -> None:
    async def script(request: Request) -> AsyncIterator[Output]:
        yield Output((), finished="cancelled")

    scripted.service.script = script
    reply = scripted.complete()
    assert reply.status_code == 503
    assert reply.headers["retry-after-ms"] == str(round(1000 * scripted.service.retry_after_s))


def test_the_clients_request_id_is_kept_if_it_is_safe(scripted: Scripted) -> None:
    def id_for(sent: str) -> str:
        return scripted.http.get("/health", headers={"x-request-id": sent}).headers["x-request-id"]

    assert id_for("abc-1.2:3") == "abc-1.2:3"
    assert id_for("a b") != "a b"
    assert id_for("x" * 200) != "x" * 200


@pytest.mark.parametrize("host", ["evil.example", "127.evil.example", "192.168.0.7:8000", "[::2]"])
def test_an_open_server_answers_loopback_names_only(scripted: Scripted, host: str) -> None:
    reply = scripted.http.get("/v1/models", headers={"host": host})
    assert (reply.status_code, error_of(reply)["code"]) == (403, "foreign_host")
    for own in ("localhost", "LOCALHOST:80", "127.0.0.1:9", "[::1]:8000"):
        assert scripted.http.get("/v1/models", headers={"host": own}).status_code == 200


@pytest.mark.parametrize("host", ["evil host", "a/b", "a:b", "", "a@b", "a:80:80"])
def test_a_malformed_host_is_400(scripted: Scripted, host: str) -> None:
    reply = scripted.http.get("/health", headers={"host": host})
    assert reply.status_code == 400
    assert error_of(reply)["code"] == "invalid_host"


def test_headers_over_32_kilobytes_are_431(scripted: Scripted) -> None:
    reply = scripted.http.get("/health", headers={f"x-{n}": "v" * 4000 for n in range(9)})
    assert reply.status_code == 431
    assert json.loads(reply.content)["error"]["code"] == "headers_too_large"

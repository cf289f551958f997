"""POST /tokenize, POST /detokenize, GET /version: counts agree with what a generation says it used."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import pytest

from .conftest import Scripted
from .scripted import EOS


def test_a_text_is_tokenised_as_a_completion_reads_it(scripted: Scripted) -> None:
    body = scripted.http.post("/tokenize", json={"prompt": "hé", "return_token_strs": True}).json()
    assert body == {
        "count": 3, "max_model_len": 4096, "tokens": list("hé".encode()), "token_strs": ["h", "\ufffd", "\ufffd"],
    }  # fmt: skip
    assert scripted.complete(prompt="hé").json()["usage"]["prompt_tokens"] == body["count"]


def test_a_conversation_is_tokenised_through_the_template(scripted: Scripted) -> None:
    messages = [{"role": "user", "content": "hi"}]
    body = scripted.http.post("/tokenize", json={"messages": messages}).json()
    assert bytes(body["tokens"]) == b"user: hi\nassistant: "
    assert body["token_strs"] is None
    open_ended = scripted.http.post("/tokenize", json={"messages": messages, "add_generation_prompt": False}).json()
    assert bytes(open_ended["tokens"]) == b"user: hi\n"
    assert scripted.chat().json()["usage"]["prompt_tokens"] == body["count"]


def test_a_control_token_that_is_spelled_is_plain_text(scripted: Scripted) -> None:
    body = scripted.http.post("/tokenize", json={"prompt": "<|end|>"}).json()
    assert EOS not in body["tokens"]


def test_tokens_become_text_again_control_tokens_included(scripted: Scripted) -> None:
    reply = scripted.http.post("/detokenize", json={"model": "scripted", "tokens": [*"hé".encode(), EOS]})
    assert reply.json() == {"prompt": "hé<|end|>"}
    assert scripted.http.post("/detokenize", json={"tokens": []}).json() == {"prompt": ""}


def test_a_text_longer_than_the_context_is_counted_all_the_same(scripted: Scripted) -> None:
    assert scripted.http.post("/tokenize", json={"prompt": "x" * 5000}).json()["count"] == 5000


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, 400, "prompt"),
        ("/tokenize", {"prompt": ["a"]}, 400, "prompt"),
        ("/tokenize", {"prompt": "a\0"}, 400, "prompt"),
        ("/tokenize", {"messages": []}, 400, "messages"),
        ("/tokenize", {"messages": [{"role": "user"}]}, 400, "messages[0].content"),
        ("/tokenize", {"prompt": "a", "model": "other"}, 404, "model"),
        ("/detokenize", {}, 400, "tokens"),
        ("/detokenize", {"tokens": [257]}, 400, "tokens"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens[0]"),
        ("/detokenize", {"tokens": [1.5]}, 400, "tokens[0]"),
        ("/detokenize", {"tokens": [1] * (2**20 + 1)}, 400, "tokens"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    scripted: Scripted, path: str, body: dict[str, Any], status: int, param: str
) -> None:
    reply = scripted.http.post(path, json=body)
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert (error["param"] or "").replace("[...]", "[0]") == param


def test_the_version_is_that_of_the_package(scripted: Scripted) -> None:
    assert scripted.http.get("/version").json() == {"version": version("penstock")}

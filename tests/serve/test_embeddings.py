"""POST /v1/embeddings: forms of input, both encodings, dimensions; 400 where the model has none."""

from __future__ import annotations

import base64
import struct
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from penstock.control.request import Request
from penstock.deployment import Deployment
from penstock.runtime.facts import Output

from .conftest import Loop, Scripted
from .scripted import INFO, ScriptedService, scripted_app

WIDTH = 4


async def embed(request: Request) -> AsyncIterator[Output]:
    """Of length 1, and different for each first token."""
    assert request.sampling.embed
    assert request.max_tokens == 1
    first = request.prompt[0] / 512
    yield Output((7,), finished="length", embedding=(first, 0.0, 0.6, 0.8))


@pytest.fixture(scope="module")
def embedding(loop: Loop) -> Any:
    service = ScriptedService(Deployment(), replace(INFO, embedding_width=WIDTH))
    service.script = embed
    for url in loop.serve(scripted_app(service)):
        yield Scripted(service, url)


def ask(scripted: Scripted, **body: Any) -> httpx.Response:
    return scripted.http.post("/v1/embeddings", json=body)


def test_texts_and_token_ids_in_every_form(embedding: Scripted) -> None:
    for given, first in (("a", [97]), ([97, 98], [97]), (["a", "b"], [97, 98]), ([[97], "b", [99, 1]], [97, 98, 99])):
        body = ask(embedding, input=given, encoding_format="float").json()
        assert body["object"] == "list"
        assert body["model"] == "scripted"
        assert [one["index"] for one in body["data"]] == list(range(len(first)))
        assert [one["embedding"][0] * 512 for one in body["data"]] == first
        tokens = sum(1 if isinstance(one, int | str) else len(one) for one in given) if given != "a" else 1
        assert body["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}


def test_the_official_client_asks_for_base64_and_gets_floats(embedding: Scripted) -> None:
    made = embedding.openai.embeddings.create(model="scripted", input=["a", "bc"])
    assert made.data[1].embedding == pytest.approx([98 / 512, 0.0, 0.6, 0.8])
    assert made.usage.prompt_tokens == 3
    text = ask(embedding, input="a", encoding_format="base64").json()["data"][0]["embedding"]
    assert struct.unpack("<4f", base64.b64decode(text)) == pytest.approx((97 / 512, 0.0, 0.6, 0.8))


def test_fewer_dimensions_are_brought_to_length_1(embedding: Scripted) -> None:
    vector = ask(embedding, input="a", dimensions=3).json()["data"][0]["embedding"]
    assert len(vector) == 3
    assert sum(value * value for value in vector) == pytest.approx(1)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": ["a"] * 1025}, "input"),
        ({"input": [300]}, "input"),
        ({"input": "x" * 4097}, "input"),
        ({"input": 5}, "input"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "dimensions": 5}, "dimensions"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({}, "input"),
    ],
)
def test_what_cannot_be_is_refused_by_name(embedding: Scripted, body: dict[str, Any], param: str) -> None:
    reply = ask(embedding, **body)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == param


def test_a_thousand_texts_fit_into_one_request(embedding: Scripted) -> None:
    """As the batches of LangChain's client have them."""
    made = embedding.openai.embeddings.create(model="scripted", input=["a"] * 1000)
    assert [one.index for one in made.data] == list(range(1000))


def test_a_model_without_embeddings_says_so(scripted: Scripted) -> None:
    error = ask(scripted, input="a").json()["error"]
    assert (error["param"], error["code"]) == ("model", "unsupported_model")
    assert "the model has none" in error["message"]

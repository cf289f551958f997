"""Embeddings end to end: a small checkpoint in its worker process, asked by the official client."""

from __future__ import annotations

import math
from pathlib import Path

import openai
import pytest

from penstock.deployment import Deployment
from penstock.runtime import ChatTemplate, load_tokenizer
from penstock.runtime.service import Service
from penstock.serve.app import create_app

from .conftest import Loop, Real


@pytest.fixture(scope="module")
def embedding(loop: Loop, tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    deployment = Deployment.parse(
        {"model": {"pooling": "mean"}, "hardware": {"threads": 1}, "memory": {"kv_bytes": "32MiB"}}
    )
    service = loop.run(Service.start(deployment))
    tokenizer = load_tokenizer(Path(service.info.path))
    app = create_app(service, deployment, tokenizer=tokenizer, template=ChatTemplate.of(tokenizer))
    try:
        for url in loop.serve(app):
            yield Real(service, tokenizer, url, loop)
    finally:
        loop.run(service.close())


def test_vectors_depend_on_the_text_alone(embedding: Real) -> None:
    create = embedding.openai.embeddings.create
    texts = ["The river flows.", "A river flows.", "Seven plus five is twelve."]
    together = [one.embedding for one in create(model="millrace", input=texts).data]
    alone = [create(model="millrace", input=text, encoding_format="float").data[0].embedding for text in texts]
    assert len(together[0]) == embedding.service.info.embedding_width > 0
    for one, other in zip(together, alone, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    assert _cosine(together[0], together[1]) > _cosine(together[0], together[2])


def test_a_repeated_text_has_the_same_vector_although_its_prefix_is_cached(embedding: Real) -> None:
    create = embedding.openai.embeddings.create
    text = "The mill stands by the river, and its wheel turns slowly all day long. " * 4
    first, second = (create(model="millrace", input=text) for _ in range(2))
    assert first.data[0].embedding == pytest.approx(second.data[0].embedding, abs=1e-5)
    assert first.usage.prompt_tokens == second.usage.total_tokens
    cut = create(model="millrace", input=text, dimensions=16).data[0].embedding
    assert len(cut) == 16
    assert math.hypot(*cut) == pytest.approx(1, abs=1e-5)
    ratio = cut[0] / first.data[0].embedding[0]
    assert cut == pytest.approx([ratio * value for value in first.data[0].embedding[:16]], abs=1e-5)


def test_a_text_may_fill_the_context_and_no_more(embedding: Real) -> None:
    context = embedding.service.info.max_sequence_tokens
    create = embedding.openai.embeddings.create
    assert create(model="millrace", input=[5] * context).usage.prompt_tokens == context
    with pytest.raises(openai.BadRequestError, match="context"):
        create(model="millrace", input=[5] * (context + 1))


def _cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))

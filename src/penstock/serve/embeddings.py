"""POST /v1/embeddings: texts or token ids to vectors, for models that have them.

An input runs as a prompt of which nothing is generated: admission, fair shares, cancellation and recovery are those of
any request. The engine pools as the model's own files say; what is cut to `dimensions` is brought to length 1 again.
"""

from __future__ import annotations

import math
import struct
from base64 import b64encode
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request as HttpRequest

from penstock.errors import InvalidRequest
from penstock.serve.answer import Answer
from penstock.serve.choice import Choice, Piece
from penstock.serve.completions import read_prompts
from penstock.serve.front import Call, Front
from penstock.serve.generation import Generation
from penstock.serve.schema import Body, Named, Text, TokenId
from penstock.serve.time_bounds import time_bounds

NO_EMBEDDINGS: Final = "the model has none"


class EmbeddingBody(Named, frozen=True, kw_only=True):
    """POST /v1/embeddings."""

    input: Text | Annotated[list[TokenId | Text | list[TokenId]], Meta(min_length=1)]
    """A string, token ids, or up to 1,024 of either."""
    encoding_format: Literal["float", "base64"] | None = None
    """base64: of little-endian float32."""
    dimensions: Annotated[int, Meta(ge=1, le=2**20)] | None = None
    """The first so many numbers, brought to length 1."""
    add_special_tokens: bool | None = None
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | None = None
    user: Annotated[str, Meta(max_length=512)] | None = None


async def embeddings(front: Front, request: HttpRequest, tenant: str) -> Answer:
    """From the body to an answer that runs when it is sent. Raises InvalidRequest, Refusal, Overloaded."""
    call = Call(tenant, time_bounds(request))
    body, _ = await front.body(request, EmbeddingBody)
    width = front.service.info.embedding_width
    if not width:
        raise InvalidRequest(
            field="model", value=front.service.info.name, why=f"no embeddings: {NO_EMBEDDINGS}",
            remedy="a server with an embedding model", code="unsupported_model",
        )  # fmt: skip
    if body.dimensions is not None and body.dimensions > width:
        raise InvalidRequest(
            field="dimensions", value=body.dimensions, why=f"the model's vectors have {width} numbers",
            remedy=f"{width} or fewer, or leave it out",
        )  # fmt: skip
    prompts = await read_prompts(
        front, body.input, special=body.add_special_tokens is not False, field="input", limit="inputs"
    )
    generation = front.generation(
        call, Body(model=body.model, temperature=0.0, ignore_eos=True, priority=body.priority), prompts, max_tokens=0,
        max_field="input", prompt_field="input", logprobs=None, embed=True,
    )  # fmt: skip
    form = EmbeddingFormat(
        body.model or front.service.info.name, dimensions=body.dimensions, base64=body.encoding_format == "base64"
    )
    return Answer(generation, form, stream=False, tenant=tenant)


class EmbeddingFormat:
    """The whole answer; embeddings are never streamed."""

    def __init__(self, model: str, *, dimensions: int | None, base64: bool) -> None:
        self._model, self._dimensions, self._base64 = model, dimensions, base64

    def opening(self, choice: Choice) -> bytes:
        return b""

    def piece(self, choice: Choice, piece: Piece) -> bytes:
        return b""

    def around(self, choice: Choice) -> None:
        return

    def closing(self, choice: Choice) -> bytes:
        return b""

    def ending(self, generation: Generation) -> bytes:
        return b""

    def whole(self, generation: Generation) -> bytes:
        """As one JSON body."""
        tokens = sum(len(prompt.ids) for prompt in generation.prompts)
        shown: dict[str, Any] = {
            "object": "list",
            "data": [
                {"object": "embedding", "index": choice.index, "embedding": self._shown(choice.embedding or ())}
                for choice in generation.choices
            ],
            "model": self._model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
        return msgspec.json.encode(shown)

    def _shown(self, vector: Sequence[float]) -> Sequence[float] | str:
        if self._dimensions is not None:
            vector = vector[: self._dimensions]
            length = math.sqrt(sum(value * value for value in vector))
            vector = [value / length for value in vector] if length else vector
        return b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() if self._base64 else vector

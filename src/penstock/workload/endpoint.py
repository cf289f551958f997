"""The server under test, as found out by asking it: model, context, whether prompts may be token ids.

Any OpenAI-compatible server will do. Token ids are preferred, because then a prompt has exactly the length the
workload says; where the server refuses them (or the chat endpoint is asked for) prompts are words, and two short
requests measure how many tokens a word and the wrapping cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from penstock.errors import BadInput, PenstockError
from penstock.workload.client import Answer, Client, error_message
from penstock.workload.prompts import UNKNOWN_VOCABULARY, IdPrompts, TextPrompts, Vocabulary
from penstock.workload.trace import TraceRequest

Api = Literal["completions", "chat"]
_PATHS: dict[Api, str] = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
_PROBE_WORDS = (16, 144)


class NoServer(PenstockError):
    """Nothing usable answers at the URL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """How to talk to the server."""

    api: Api
    model: str
    takes_ids: bool
    vocabulary: Vocabulary
    context_tokens: int | None
    tokens_per_word: float = 1.0
    overhead_tokens: int = 0
    temperature: float = 0.0
    ignore_eos: bool = True

    @property
    def path(self) -> str:
        return _PATHS[self.api]

    def prompts(self, seed: int, block_tokens: int) -> IdPrompts | TextPrompts:
        """The maker of this server's prompts."""
        if self.takes_ids:
            return IdPrompts(self.vocabulary, seed, block_tokens)
        return TextPrompts(seed, self.tokens_per_word, self.overhead_tokens, block_tokens)

    def body(self, prompt: list[int] | str, output_tokens: int) -> bytes:
        """A streaming request, usage asked for."""
        return msgspec.json.encode(
            _request(self.api, self.model, prompt, output_tokens)
            | {
                "stream": True,
                "stream_options": {"include_usage": True},
                "temperature": self.temperature,
                **({"ignore_eos": True} if self.ignore_eos else {}),
            }
        )


def _request(api: Api, model: str, prompt: list[int] | str, output_tokens: int) -> dict[str, Any]:
    content: dict[str, Any]
    content = {"prompt": prompt} if api == "completions" else {"messages": [{"role": "user", "content": prompt}]}
    return {"model": model, "max_tokens": output_tokens, **content}


async def discover(
    client: Client,
    *,
    api: Api = "completions",
    model: str | None = None,
    vocab_size: int | None = None,
    temperature: float = 0.0,
    ignore_eos: bool = True,
) -> Endpoint:
    """Ask the server what it is.

    Raises:
        NoServer: no connection, or an answer that is no OpenAI-compatible server's.
        BadInput: `model` is not one of those it serves.
    """
    card = await _model_card(client, model)
    context = _whole(card, "max_model_len", "max_sequence_tokens", "context_length", "context_window")
    size = vocab_size or _whole(card, "vocab_size") or UNKNOWN_VOCABULARY
    vocabulary = Vocabulary.of_size(size)
    name = str(card["id"])
    takes_ids = False
    if api == "completions":
        ids = IdPrompts(vocabulary, 0).make(0, TraceRequest(0.0, 8, 1))
        answer = await _probe(client, _request(api, name, ids, 1), api)
        takes_ids = answer.status == 200
        if not takes_ids and answer.status not in (400, 422):
            raise _unusable(answer, "a probe of 8 token ids")
    slope, overhead = (1.0, 0) if takes_ids else await _calibrate(client, api, name)
    return Endpoint(
        api=api,
        model=name,
        takes_ids=takes_ids,
        vocabulary=vocabulary,
        context_tokens=context,
        tokens_per_word=slope,
        overhead_tokens=overhead,
        temperature=temperature,
        ignore_eos=ignore_eos,
    )


async def _model_card(client: Client, model: str | None) -> dict[str, Any]:
    answer = await client.send("/v1/models")
    if answer.status != 200:
        raise _unusable(answer, "GET /v1/models")
    try:
        cards = [card for card in msgspec.json.decode(answer.body)["data"] if "id" in card]
    except (msgspec.MsgspecError, KeyError, TypeError):
        raise _unusable(answer, "GET /v1/models") from None
    found = {str(card["id"]): card for card in cards}
    if model is None and cards:
        return dict(cards[0])
    if model not in found:
        raise BadInput(
            field="model", value=model, why="the server does not serve it",
            remedy="one of " + ", ".join(found) if found else "a server with a model",
        )  # fmt: skip
    return dict(found[model])


def _whole(card: dict[str, Any], *names: str) -> int | None:
    """The first of these fields that is a positive whole number, here or under `meta` or `penstock`."""
    for holder in (card, *(card[key] for key in ("meta", "penstock", "metadata") if isinstance(card.get(key), dict))):
        for name in names:
            value = holder.get(name)
            if isinstance(value, int) and value > 0:
                return value
    return None


async def _probe(client: Client, request: dict[str, Any], api: Api) -> Answer:
    return await client.send(_PATHS[api], msgspec.json.encode(request | {"temperature": 0.0}))


async def _calibrate(client: Client, api: Api, model: str) -> tuple[float, int]:
    """(tokens per word, tokens around the words), from the prompt tokens of a short and a longer prompt."""
    counts = []
    for words in _PROBE_WORDS:
        text = TextPrompts(seed=0).make(0, TraceRequest(0.0, words, 1))
        answer = await _probe(client, _request(api, model, text, 1), api)
        if answer.status != 200:
            raise _unusable(answer, f"a probe of {words} words")
        try:
            counts.append(int(msgspec.json.decode(answer.body)["usage"]["prompt_tokens"]))
        except (msgspec.MsgspecError, KeyError, TypeError, ValueError):
            return 1.0, 0  # a server without usage: the length of prompts stays a guess, and usage notes say so
    slope = max(0.1, (counts[1] - counts[0]) / (_PROBE_WORDS[1] - _PROBE_WORDS[0]))
    return slope, max(0, round(counts[0] - slope * _PROBE_WORDS[0]))


def _unusable(answer: Answer, what: str) -> NoServer:
    if answer.status is None:
        return NoServer(f"no answer to {what}: {answer.error}. Remedy: start the server, or correct --url")
    said = error_message(answer.body) if answer.body else answer.error
    return NoServer(f"{what} was answered with {answer.status}: {said}. Remedy: --endpoint, --model or --api-key")

"""From a body's fields to `Sampling`: the client's value, else the model's generation_config, else neutral."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from penstock.control.request import Sampling
from penstock.errors import InvalidRequest
from penstock.serve.schema import Body


def make_sampling(
    body: Body, *, defaults: Mapping[str, Any], eos_ids: Iterable[int], vocab_size: int, max_tokens: int,
    logprobs: int | None, prompt_logprobs: int | None = None, embed: bool = False,
) -> Sampling:  # fmt: skip
    """How the tokens of one request are chosen. `seed` is that of its first choice; see `seed_of_choice`.

    Raises:
        InvalidRequest: a token id outside the vocabulary, or min_tokens over max_tokens.
    """
    min_tokens = body.min_tokens or 0
    if min_tokens > max_tokens:
        raise InvalidRequest(
            field="min_tokens", value=min_tokens, why=f"max_tokens is {max_tokens}", remedy="at most max_tokens"
        )
    bias = body.logit_bias or {}
    stop_ids = body.stop_token_ids or []
    for field, ids in (("logit_bias", bias), ("stop_token_ids", stop_ids)):
        for token in ids:
            if token >= vocab_size:
                raise InvalidRequest(
                    field=field, value=token, why="no such token", remedy=f"ids from 0 to {vocab_size - 1}"
                )

    def pick(name: str, neutral: float) -> Any:
        asked = getattr(body, name)
        if asked is None:
            asked = defaults.get(name)
        return neutral if asked is None else asked

    # A generation_config may name ends that this model has no row for.
    ends = () if body.ignore_eos else tuple(one for one in eos_ids if one < vocab_size)
    return Sampling(
        temperature=float(pick("temperature", 1.0)),
        top_k=max(int(pick("top_k", 0)), 0),
        top_p=float(pick("top_p", 1.0)),
        min_p=float(pick("min_p", 0.0)),
        repetition_penalty=float(pick("repetition_penalty", 1.0)),
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=tuple(bias.items()),
        seed=body.seed,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        embed=embed,
        stop_ids=tuple(dict.fromkeys((*ends, *stop_ids))),
        min_tokens=min_tokens,
    )


def seed_of_choice(seed: int | None, choice: int) -> int | None:
    """Choices of one request differ although the client gave one seed; choice 0 is what n = 1 would have given.

    >>> seed_of_choice(7, 0), seed_of_choice(7, 2), seed_of_choice(2**63 - 1, 1) == -(2**63)
    (7, 9, True)
    """
    return None if seed is None else (seed + choice + 2**63) % 2**64 - 2**63

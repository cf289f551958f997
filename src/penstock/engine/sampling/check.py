"""What a request may ask of the sampler: every field's range, checked before anything is kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from penstock.control.request import Request
from penstock.errors import InvalidRequest

_LARGEST: Final = float(np.finfo(np.float32).max)
"""The sampler keeps penalties as float32."""
_LEAST_REPETITION: Final = 0.01
"""Divided by much less, logits overflow and say nothing any more."""


def check_request(request: Request, vocab_size: int) -> None:
    """Raise InvalidRequest for the first field that the sampler cannot honour."""
    sampling = request.sampling
    _in_range("temperature", sampling.temperature, 0, math.inf)
    _in_range("top_k", sampling.top_k, 0, math.inf)
    _in_range("top_p", sampling.top_p, 0, 1, above=True)
    _in_range("min_p", sampling.min_p, 0, 1)
    _in_range("repetition_penalty", sampling.repetition_penalty, _LEAST_REPETITION, _LARGEST)
    _in_range("presence_penalty", sampling.presence_penalty, -_LARGEST, _LARGEST)
    _in_range("frequency_penalty", sampling.frequency_penalty, -_LARGEST, _LARGEST)
    _in_range("min_tokens", sampling.min_tokens, 0, math.inf)
    if sampling.logprobs is not None:
        _in_range("logprobs", sampling.logprobs, 0, vocab_size)
    if sampling.prompt_logprobs is not None:
        _in_range("prompt_logprobs", sampling.prompt_logprobs, 0, vocab_size)
    _ids("logit_bias", [token for token, _ in sampling.logit_bias], vocab_size)
    for _, bias in sampling.logit_bias:
        _in_range("logit_bias", bias, -math.inf, math.inf)
    _ids("stop_ids", sampling.stop_ids, vocab_size)
    _ids("prompt", request.prompt, vocab_size)
    _ids("output", request.output, vocab_size)


def _in_range(field: str, value: float, low: float, high: float, *, above: bool = False) -> None:
    if math.isfinite(value) and (low < value if above else low <= value) and value <= high:
        return
    bounds = f"{'above' if above else 'from'} {low:g}" if low > -math.inf else "finite"
    bounds += f" to {high:g}" if high < math.inf else ""
    raise InvalidRequest(field=field, value=value, why="it is out of range", remedy=f"a number {bounds}")


def _ids(field: str, ids: Sequence[int], vocab_size: int) -> None:
    if not ids:
        return
    for extreme in (min(ids), max(ids)):
        if not 0 <= extreme < vocab_size:
            raise InvalidRequest(
                field=field,
                value=extreme,
                why="it is no token id of this model",
                remedy=f"ids from 0 to {vocab_size - 1}",
            )

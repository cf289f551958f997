"""Stand-ins for the words of a simulated request: ids that are equal just where the workload says so."""

from __future__ import annotations

from itertools import chain, islice
from typing import Final

from penstock.workload.sessions import SESSION_BLOCKS
from penstock.workload.source import TimedRequest

Tokens = range | tuple[int, ...]
_OWN_BITS: Final = 24
OWN_ROOM: Final = 1 << _OWN_BITS
"""Distinct ids set aside for each request's own words."""


NOTHING: Final = range(0)


def token_ids(request: TimedRequest, block_tokens: int) -> Tokens:
    """The prompt of a request. Block b of a prefix is ids [b x block_tokens, (b + 1) x block_tokens).

    A session is one stream of ids, answers included, so that a later turn finds the KV of the earlier answer. What
    nobody shares is below zero. A range where it can be: those are sliced and compared in no time.

    >>> token_ids(TimedRequest(0, 0.0, 40, 8, prefix=(3, 4)), 16)[:3]
    (48, 49, 50)
    """
    prompt, prefix, session = request.prompt_tokens, request.prefix, request.session
    own = -((request.index + 1) << _OWN_BITS)
    if not prefix:
        tail = own if session is None else session * SESSION_BLOCKS * block_tokens
        return range(tail, tail + prompt)
    covered = min(prompt, len(prefix) * block_tokens)
    tail = own if session is None else session * SESSION_BLOCKS * block_tokens + covered
    end = tail + prompt - covered
    if session is not None and prefix[0] == session * SESSION_BLOCKS and prefix[-1] - prefix[0] == len(prefix) - 1:
        return range(tail - covered, end)
    blocks = chain.from_iterable(range(block * block_tokens, (block + 1) * block_tokens) for block in prefix)
    return (*islice(blocks, covered), *range(tail, end))


def answer_ids(request: TimedRequest, block_tokens: int, output_tokens: int) -> range:
    """Of the answer, in a session: its next turn goes on after them. Nobody can ever meet those of a lone request."""
    if request.session is None:
        return NOTHING
    end = request.session * SESSION_BLOCKS * block_tokens + request.prompt_tokens
    return range(end, end + output_tokens)

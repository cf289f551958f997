"""Stand-ins for the words of a simulated request: ids that are equal just where the workload says so."""

from __future__ import annotations

from itertools import chain, islice
from typing import Final

from penstock.workload.sessions import SESSION_BLOCKS
from penstock.workload.source import TimedRequest

Tokens = range | tuple[int, ...]
OWN_ROOM: Final = 1 << 24
"""Distinct ids set aside for each request's own words."""


def token_ids(request: TimedRequest, block_tokens: int) -> tuple[Tokens, range]:
    """Prompt and output of a request. Block b of a prefix is ids [b x block_tokens, (b + 1) x block_tokens).

    A session is one stream of ids, answers included, so that a later turn finds the KV of the earlier answer. What
    nobody shares is below zero. A range where it can be: those are sliced and compared in no time.

    >>> token_ids(TimedRequest(0, 0.0, 40, 8, prefix=(3, 4)), 16)[0][:3]
    (48, 49, 50)
    """
    prefix = request.prefix or ()
    prompt = request.prompt_tokens
    covered = min(prompt, len(prefix) * block_tokens)
    session = request.session
    own = -(request.index + 1) * OWN_ROOM
    tail = own if session is None else session * SESSION_BLOCKS * block_tokens + covered
    end = tail + prompt - covered
    output = range(end, end + request.output_tokens)
    if not prefix:
        return range(tail, end), output
    if session is not None and prefix[0] == session * SESSION_BLOCKS and prefix[-1] - prefix[0] == len(prefix) - 1:
        return range(tail - covered, end), output
    blocks = chain.from_iterable(range(block * block_tokens, (block + 1) * block_tokens) for block in prefix)
    return (*islice(blocks, covered), *range(tail, end)), output

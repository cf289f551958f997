"""What a replica can never run is refused when it comes, with the numbers that say why."""

from __future__ import annotations

from penstock.control.memory.blocks import Memory, blocks_for
from penstock.control.sequence import Sequence
from penstock.errors import InvalidRequest


def refuse_impossible(sequence: Sequence, memory: Memory) -> None:
    """Raises InvalidRequest for an empty prompt, an output that is complete already, or more KV than there is."""
    prompt_tokens, most, outputs = sequence.prompt_tokens, sequence.max_tokens, sequence.outputs
    if not prompt_tokens:
        raise InvalidRequest(field="prompt", value="", why="it holds no token", remedy="send at least one token")
    if most <= outputs:
        raise InvalidRequest(
            field="max_tokens", value=most, why=f"{outputs} tokens are there already", remedy=f"{outputs + 1} or more",
        )  # fmt: skip
    # The last token is never an input, so it needs no room.
    tokens = prompt_tokens + most - 1
    if not memory.fits(tokens):
        raise InvalidRequest(
            field="max_tokens", value=most,
            why=f"{prompt_tokens} prompt tokens and {most} more need "
            f"{blocks_for(tokens, memory.block_tokens)} KV blocks of {memory.block_tokens} tokens; a sequence may "
            f"hold fewer ({memory.total} in all)",
            remedy="a shorter prompt, fewer tokens, or a larger memory.kv_bytes", code="context_length_exceeded",
        )  # fmt: skip

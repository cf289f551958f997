"""The parts by name, and the named combinations of the papers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from penstock.control.compose.fill import Compose
from penstock.control.compose.mixed_prompts import MixedPrompts
from penstock.control.compose.prefill_first import PrefillFirst
from penstock.control.compose.request_level import RequestLevel
from penstock.control.compose.single_phase import DecodeOnly, PrefillOnly
from penstock.control.compose.splitfuse import SplitFuse
from penstock.control.compose.stall_free import StallFree
from penstock.control.evict.evict import Evict
from penstock.control.evict.recompute import Recompute
from penstock.control.evict.swap import SwapToHost
from penstock.control.memory.blocks import Memory
from penstock.control.memory.paged import Paged
from penstock.control.memory.prefix_tree import PrefixTree
from penstock.control.memory.reserved import Reserved
from penstock.control.order.arrival import Arrival
from penstock.control.order.fair_share import FairShare
from penstock.control.order.priority import Priority
from penstock.control.order.queue import Order
from penstock.control.order.shortest import Shortest
from penstock.control.replica import Replica
from penstock.errors import InvalidDeployment

_T = TypeVar("_T")

ORDERS: Final[dict[str, Callable[[float, int], Order]]] = {
    "arrival": lambda ageing_s, max_seqs: Arrival(),
    "priority": lambda ageing_s, max_seqs: Priority(ageing_s),
    "shortest": lambda ageing_s, max_seqs: Shortest(ageing_s),
    "fair_share": lambda ageing_s, max_seqs: FairShare(max_seqs),
}
"""From the time that outweighs a priority level, and the places in the batch."""

COMPOSES: Final[dict[str, Callable[[int], Compose]]] = {
    "stall_free": StallFree,
    "splitfuse": SplitFuse,
    "mixed_prompts": MixedPrompts,
    "prefill_first": PrefillFirst,
    "prefill_only": PrefillOnly,
    "decode_only": lambda token_budget: DecodeOnly(),
    "request_level": RequestLevel,
}

POLICIES: Final[dict[str, str]] = {
    "sarathi": "stall_free",
    "splitfuse": "splitfuse",
    "orca": "mixed_prompts",
    "vllm_prefill_first": "prefill_first",
    "request_level": "request_level",
}
"""Policy name to the compose rule that is its idea."""


def build_replica(
    *,
    blocks: int,
    block_tokens: int = 16,
    max_sequence_tokens: int,
    policy: str = "sarathi",
    order: str = "arrival",
    compose: str | None = None,
    evict: str = "recompute",
    memory: str = "prefix_tree",
    evict_idle: str = "fair",
    token_budget: int = 512,
    max_seqs: int = 128,
    ageing_s: float = 30.0,
    watermark: float = 0.01,
    host_blocks: int = 0,
) -> Replica:
    """A replica from names and numbers; `compose`, if given, overrides the policy's.

    Raises InvalidDeployment for an unknown name, or for a memory too small to hold one sequence.
    """
    compose = compose or _known("policy.name", policy, POLICIES)
    return Replica(
        order=_known("policy.order", order, ORDERS)(ageing_s, max_seqs),
        compose=_known("policy.compose", compose, COMPOSES)(token_budget),
        evict=_evict(evict, host_blocks),
        memory=_memory(memory, evict_idle, blocks, block_tokens, max_sequence_tokens),
        max_seqs=max_seqs,
        watermark=watermark,
    )


def _evict(name: str, host_blocks: int) -> Evict:
    makers: dict[str, Callable[[], Evict]] = {"recompute": Recompute, "swap": lambda: SwapToHost(host_blocks)}
    return _known("policy.evict", name, makers)()


def _memory(name: str, evict_idle: str, blocks: int, block_tokens: int, max_sequence_tokens: int) -> Memory:
    fair = _known("memory.evict_idle", evict_idle, {"fair": True, "lru": False})
    makers: dict[str, Callable[[], Memory]] = {
        "paged": lambda: Paged(blocks, block_tokens),
        "prefix_tree": lambda: PrefixTree(blocks, block_tokens, fair=fair),
        "reserved": lambda: Reserved(blocks, block_tokens, max_sequence_tokens),
    }
    memory = _known("memory.kind", name, makers)()
    if not memory.fits(1):
        raise InvalidDeployment(
            field="memory.kv_bytes", value=f"{blocks} blocks of {block_tokens} tokens",
            why=f"not one sequence of {max_sequence_tokens} tokens fits", remedy="more memory.kv_bytes, or a smaller "
            "model.max_sequence_tokens",
        )  # fmt: skip
    return memory


def _known(field: str, name: str, table: dict[str, _T]) -> _T:
    if name not in table:
        raise InvalidDeployment(field=field, value=name, why="no such part", remedy="one of " + ", ".join(table))
    return table[name]

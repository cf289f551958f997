"""JSON lines: Mooncake (kvcache-ai/Mooncake, FAST 2025) and LLMServingSim's workloads.

Mooncake        timestamp (ms), input_length, output_length, hash_ids: one id per 512-token block, the last partial
LLMServingSim   arrival_time_ns, input_toks, output_toks, prefix_blocks_16: one id per whole 16-token block
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, TypeVar

import msgspec

from penstock.workload.formats.row import Place, TraceRequest

MOONCAKE_BLOCK_TOKENS: Final = 512
SERVINGSIM_BLOCK_TOKENS: Final = 16


class _Mooncake(msgspec.Struct):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...] = ()


class _ServingSim(msgspec.Struct):
    arrival_time_ns: int
    input_toks: int
    output_toks: int
    prefix_blocks_16: tuple[int, ...] = ()


Row = TypeVar("Row", _Mooncake, _ServingSim)


def fits_mooncake(head: str) -> bool:
    """Whether a file with this first line is one."""
    return head.startswith("{") and '"arrival_time_ns"' not in head


def fits_serving_sim(head: str) -> bool:
    """Whether a file with this first line is one."""
    return head.startswith("{") and '"arrival_time_ns"' in head


def mooncake(lines: Iterator[tuple[Place, str]]) -> Iterator[TraceRequest]:
    """The requests, in file order. Raises BadInput."""
    for place, row in _decoded(lines, _Mooncake, "timestamp (ms), input_length, output_length, hash_ids"):
        prompt = place.checked("input_length", row.input_length)
        blocks = _blocks(place, "hash_ids", row.hash_ids, prompt, -(-prompt // MOONCAKE_BLOCK_TOKENS), "512")
        yield TraceRequest(row.timestamp / 1000, prompt, place.checked("output_length", row.output_length), blocks)


def serving_sim(lines: Iterator[tuple[Place, str]]) -> Iterator[TraceRequest]:
    """The requests, in file order. Raises BadInput."""
    for place, row in _decoded(lines, _ServingSim, "arrival_time_ns, input_toks, output_toks, prefix_blocks_16"):
        prompt = place.checked("input_toks", row.input_toks)
        whole = prompt // SERVINGSIM_BLOCK_TOKENS
        blocks = _blocks(place, "prefix_blocks_16", row.prefix_blocks_16, prompt, whole, "16")
        yield TraceRequest(row.arrival_time_ns / 1e9, prompt, place.checked("output_toks", row.output_toks), blocks)


def _decoded(lines: Iterator[tuple[Place, str]], kind: type[Row], columns: str) -> Iterator[tuple[Place, Row]]:
    decoder = msgspec.json.Decoder(kind)
    for place, line in lines:
        try:
            row = decoder.decode(line)
        except msgspec.MsgspecError as error:
            raise place.error("row", line, str(error), columns) from None
        yield place, row


def _blocks(place: Place, column: str, ids: tuple[int, ...], tokens: int, needed: int, size: str) -> tuple[int, ...]:
    if ids and len(ids) != needed:
        raise place.error(column, len(ids), f"{tokens} tokens are {needed} blocks of {size}", f"{needed} ids, or none")
    return ids

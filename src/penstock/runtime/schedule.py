"""A recorded schedule as a file: what control saw, in the order in which it saw it, one JSON object per line.

    header    once: format, versions, the deployment, the sizes that follow from it
    submit    a request arrives      cancel    nobody wants it any more
    plan      a step is planned      done      its result is here

Times are whole nanoseconds since the header's origin, as control's clock showed them. Control's decisions depend on
tokens only through which blocks of them are equal, so a prompt is a list of block hashes, keyed anew in each recording:
a schedule holds no text and nothing that a guess of the text could be checked against. Tenants, their groups and salts
likewise.

A file that ends in .gz is compressed. One that was cut off (a killed process) is readable up to its last flush.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from penstock.control.step import FinishReason, Step
from penstock.errors import BadInput

FORMAT: Final = 1
NANOSECONDS: Final = 10**9


class Event(msgspec.Struct, tag_field="event", tag=str.lower, omit_defaults=True, forbid_unknown_fields=True):
    """Base of all lines."""


class Header(Event):
    """The first line: enough to build the same replica again."""

    format: int
    penstock: str
    deployment: dict[str, Any]
    """As `Deployment.model_dump(mode="json")` writes it, without `server`: it decides nothing here, and has secrets."""
    blocks: int
    block_tokens: int
    max_sequence_tokens: int
    host_blocks: int = 0
    plan_ahead: bool = True
    model: str = ""
    """Fingerprint of the weights that ran."""
    origin_ns: int = 0
    """The clock at time 0 of this file."""


class Submit(Event):
    """A request as control took it, or refused it."""

    t: int
    id: str
    prompt_tokens: int
    max_tokens: int
    blocks: list[str] = []
    """Hashes of the prompt's whole blocks, in order."""
    output_tokens: int = 0
    """Made elsewhere before."""
    tenant: str = ""
    group: str = ""
    """Of tenants that share cached prefixes."""
    weight: float = 1.0
    """Share of its tenant."""
    salt: str = ""
    priority: int = 0
    joined: bool = False
    """It had arrived when the event before was handled: nothing was planned between the two."""
    uncached: bool = False
    """Log-probabilities of its prompt were wanted: nothing of it came from the cache."""


class Cancel(Event):
    """A request is not wanted any more."""

    t: int
    id: str
    joined: bool = False


class Plan(Event):
    """A planned step, fields that are empty left out (control/step.py names them)."""

    t: int
    n: int
    release: list[str] = []
    evict: list[str] = []
    swap_out: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []
    swap_in: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []
    admit: list[tuple[str, tuple[int, ...], int]] = []
    pause: list[str] = []
    join: list[str] = []
    grow: list[str] = []
    grow_blocks: list[int] = []
    chunks: list[tuple[str, int, int, bool]] = []
    decoding: int = 0
    decode_context: int = 0


class End(msgspec.Struct, omit_defaults=True, array_like=True):
    """How a request ended: [id, reason, output tokens, hashes of the whole blocks that follow the prompt's]."""

    id: str
    reason: FinishReason
    output_tokens: int
    blocks: list[str] = []


class Done(Event):
    """A step's result. `t`: when control took it; `start` and `end`: when the executor began and ended it."""

    t: int
    n: int
    start: int
    end: int
    finished: list[End] = []
    failed: dict[str, str] = {}
    joined: bool = False


Line = Header | Submit | Cancel | Plan | Done
_decoder: Final = msgspec.json.Decoder(Line)


def plan_of(step: Step, t: int) -> Plan:
    """The canonical form of a step: plain tuples that compare equal exactly if the steps say the same."""
    return Plan(
        t=t, n=step.number, release=step.release, evict=step.evict,
        swap_out=[(swap.id, swap.device, swap.host) for swap in step.swap_out],
        swap_in=[(swap.id, swap.device, swap.host) for swap in step.swap_in],
        admit=[(one.id, one.blocks, one.cached_tokens) for one in step.admit],
        pause=step.pause, join=step.join, grow=step.grow, grow_blocks=step.grow_blocks,
        chunks=[(chunk.id, chunk.start, chunk.tokens, chunk.last) for chunk in step.chunks],
        decoding=step.decoding, decode_context=step.decode_context,
    )  # fmt: skip


@dataclass(slots=True)
class Schedule:
    """A whole file."""

    header: Header
    events: list[Submit | Cancel | Plan | Done] = field(default_factory=list)
    truncated: bool = False
    """The end is missing: the process that wrote it was killed."""


def read_schedule(path: Path) -> Schedule:
    """Read a schedule file, plain or compressed.

    Raises:
        BadInput: unreadable, not a schedule, of another format, or with a bad line before the end; says which line.
    """
    try:
        text, truncated = inflated(path.read_bytes())
    except (OSError, zlib.error) as error:
        raise BadInput(
            field="schedule", value=str(path), why=f"it cannot be read: {error}", remedy="a file of `penstock record`"
        ) from None
    lines = text.split(b"\n")
    # A whole file ends with a line end: what stands after the last one was cut off.
    truncated |= bool(lines.pop())
    parsed = _parse(path, lines)
    header = next(parsed, None)
    if not isinstance(header, Header):
        raise BadInput(
            field=f"{path}:1", value=lines[0][:80] if lines else "", why="the first line is not a schedule's header",
            remedy="a file of `penstock record` or of server.record",
        )  # fmt: skip
    if header.format != FORMAT:
        raise BadInput(
            field=f"{path}:1 format", value=header.format, why=f"this version reads format {FORMAT}",
            remedy=f"replay it with Penstock {header.penstock}",
        )  # fmt: skip
    schedule = Schedule(header, truncated=truncated)
    for number, line in enumerate(parsed, start=2):
        if isinstance(line, Header):
            raise BadInput(field=f"{path}:{number}", value="header", why="it comes twice", remedy="one schedule a file")
        schedule.events.append(line)
    return schedule


def _parse(path: Path, lines: list[bytes]) -> Iterator[Line]:
    for number, line in enumerate(lines, start=1):
        try:
            yield _decoder.decode(line)
        except msgspec.MsgspecError as error:
            raise BadInput(
                field=f"{path}:{number}",
                value=line[:80],
                why=str(error),
                remedy="an unchanged file of `penstock record`",
            ) from None


def inflated(raw: bytes) -> tuple[bytes, bool]:
    """Contents of a file that may be compressed, and whether one that is lacks its end. Raises zlib.error."""
    if raw[:2] != b"\x1f\x8b":
        return raw, False
    inflate = zlib.decompressobj(wbits=31)
    return inflate.decompress(raw), not inflate.eof

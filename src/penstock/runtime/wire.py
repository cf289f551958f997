"""What front end and worker say to each other: typed messages in length-prefixed msgpack frames.

    front end -> worker    Start, Submit, Cancel, ForgetPrefixes, LoadAdapter, UnloadAdapter
    worker -> front end    Phase, Reading, Ready, Admitted, Stepped, Refused, Failure,
                           AdapterLoaded, AdapterRefused, AdapterGone

A frame is 4 bytes of length (big-endian), then that many bytes of msgpack. Bytes become exactly the types below or a
ProtocolError; nothing received can run code or claim memory beyond MAX_FRAME_BYTES.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Final, TypeVar

import msgspec

from penstock.control.request import Request
from penstock.control.statistics import Statistics
from penstock.control.step import Failed, Finished, PromptLogprobs, TokenLogprobs
from penstock.errors import ProtocolError
from penstock.runtime.facts import ModelInfo, StepReport

MAX_FRAME_BYTES: Final = 64 * 2**20
"""A prompt of a million tokens is 5 MB; a step of 4,096 sequences with 20 logprobs each is 1 MB."""

_LENGTH: Final = struct.Struct(">I")


class Message(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """Base of all messages; the tag is the class's name."""


class LoadAdapter(Message, frozen=True):
    """Make this adapter known. Answered by AdapterLoaded or AdapterRefused."""

    name: str
    path: str
    digest: str | None = None
    """Of its files, if they must be those that were loaded before."""


class UnloadAdapter(Message, frozen=True):
    """No request that comes has it. Answered by AdapterGone once the last that had it is out of the engine."""

    name: str


class Start(Message, frozen=True):
    """The first message: what to load."""

    deployment: dict[str, Any]
    """As `Deployment.model_dump(mode="json")` writes it."""
    restart: bool = False
    """It takes the place of another."""
    adapters: list[LoadAdapter] = []
    """To load before it is ready. A worker that takes another's place goes on without one that fails."""


class Submit(Message, frozen=True):
    """A new request, or one that goes on after a restart: then `request.output` holds what it has so far."""

    request: Request


class Cancel(Message, frozen=True):
    """Nobody wants this request any more. Answered by Finished(..., "cancelled"), unless it had ended already."""

    id: str


class ForgetPrefixes(Message, frozen=True):
    """Requests that come later find no KV of those before."""


class Phase(Message, frozen=True):
    """One phase of starting is done. It began where the one before ended, so that no time goes unlogged."""

    name: str
    ended: float
    """Of the monotonic clock, which all processes of a machine share."""
    detail: str


class Reading(Message, frozen=True):
    """So much of the weights is read, where that takes long."""

    done_bytes: int
    total_bytes: int


class Ready(Message, frozen=True):
    """Requests may come."""

    info: ModelInfo


class Admitted(Message, frozen=True):
    """The step that comes next gives these requests KV. Said before it runs: if the worker dies of it, here is why."""

    ids: list[str]


class Stepped(Message, frozen=True):
    """All news of one step in one frame; or, without `report`, of none (cancelled before it ran, first statistics)."""

    report: StepReport | None = None
    admitted: dict[str, int] = {}
    """Requests that got KV blocks in this step, with how many of their tokens held KV already."""
    tokens: dict[str, int] = {}
    logprobs: dict[str, TokenLogprobs] = {}
    finished: list[Finished] = []
    failed: list[Failed] = []
    prompt_logprobs: dict[str, PromptLogprobs] | None = None
    """Of prompts that this step computed, where asked for."""
    embeddings: dict[str, bytes] | None = None
    """Of prompts complete with this step, where asked for: float32, little-endian."""
    statistics: Statistics | None = None
    """Right after Ready, a few times per second, and whenever the worker goes idle."""


class Refused(Message, frozen=True):
    """The engine cannot run this request: fields of InvalidRequest."""

    id: str
    field: str
    value: str
    why: str
    remedy: str
    code: str


class AdapterLoaded(Message, frozen=True):
    """Requests may name it."""

    name: str
    rank: int
    bytes: int
    digest: str


class AdapterRefused(Message, frozen=True):
    """It cannot be loaded: fields of UnsupportedAdapter."""

    name: str
    field: str
    value: str
    why: str
    remedy: str


class AdapterGone(Message, frozen=True):
    """It takes up no room any more."""

    name: str


class Failure(Message, frozen=True):
    """The worker's last words. `kind` is the error's class; the other fields are a BadInput's, or empty."""

    kind: str
    message: str
    field: str = ""
    value: str = ""
    why: str = ""
    remedy: str = ""


ToWorker = Start | Submit | Cancel | ForgetPrefixes | LoadAdapter | UnloadAdapter
AboutAdapters = AdapterLoaded | AdapterRefused | AdapterGone
FromWorker = Phase | Reading | Ready | Admitted | Stepped | Refused | Failure | AboutAdapters

Incoming = TypeVar("Incoming")
_encoder = msgspec.msgpack.Encoder()
to_worker: Final = msgspec.msgpack.Decoder(ToWorker)
from_worker: Final = msgspec.msgpack.Decoder(FromWorker)


def encode(message: ToWorker | FromWorker) -> bytes:
    """One frame. Raises ProtocolError if it would exceed MAX_FRAME_BYTES."""
    buffer = bytearray(_LENGTH.size)
    _encoder.encode_into(message, buffer, _LENGTH.size)
    length = len(buffer) - _LENGTH.size
    if length > MAX_FRAME_BYTES:
        raise ProtocolError(f"{type(message).__name__} of {length} bytes exceeds a frame's {MAX_FRAME_BYTES}")
    _LENGTH.pack_into(buffer, 0, length)
    return bytes(buffer)


class Frames:
    """Bytes in whatever pieces they arrive, whole messages out. `decoder` is `to_worker` or `from_worker`."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[Any]) -> None:
        self._decoder = decoder
        self._buffer = bytearray()

    def feed(self, data: bytes | memoryview) -> Iterator[Any]:
        """Messages that `data` completes, in order.

        Raises:
            ProtocolError: a frame that is too long, or not one of the expected messages. The stream is then unusable.
        """
        buffer = self._buffer
        buffer += data
        start = 0
        try:
            while len(buffer) - start >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(buffer, start)
                if length > MAX_FRAME_BYTES:
                    raise ProtocolError(f"a frame of {length} bytes was announced; {MAX_FRAME_BYTES} are allowed")
                end = start + _LENGTH.size + length
                if len(buffer) < end:
                    break
                frame = bytes(memoryview(buffer)[start + _LENGTH.size : end])
                start = end
                try:
                    message = self._decoder.decode(frame)
                except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                    raise ProtocolError(f"a frame of {length} bytes is not a message: {error}") from None
                yield message
        finally:
            del buffer[:start]

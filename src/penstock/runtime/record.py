"""Writes down what control sees, as a schedule file (schedule.py), while it runs (Contract 3).

The loop calls one method per event. Each formats a line and puts it into a buffer, some microseconds; the buffer goes
to the file several times a second, so that a run that is killed leaves all but its last moment.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import threading
import zlib
from array import array
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from time import monotonic
from typing import BinaryIO, Final

import msgspec

from penstock.control.request import Request
from penstock.control.step import Step, StepResult
from penstock.deployment import Deployment
from penstock.errors import BadInput
from penstock.runtime.schedule import FORMAT, NANOSECONDS, Cancel, Done, End, Header, Line, Submit, plan_of

FLUSH_EVERY_S: Final = 0.25
FLUSH_BYTES: Final = 256 * 2**10
_log = logging.getLogger("penstock.runtime")
_HASH_BYTES: Final = 8
"""Two different blocks are taken for equal once in 2**64 pairs."""


class Recorder:
    """One schedule file. The loop's thread calls everything but `close`, which any thread may call, twice too."""

    def __init__(self, path: Path, header: Header) -> None:
        """Raises BadInput: the file cannot be written. A file of that name is never overwritten: see `free_name`."""
        self.path = path
        self._origin_ns, self._size = header.origin_ns, header.block_tokens
        self._key = secrets.token_bytes(16)
        self._encoder = msgspec.json.Encoder()
        self._deflate = zlib.compressobj(level=1, wbits=31) if path.suffix == ".gz" else None
        self._buffer = bytearray()
        self._flush_due = 0.0
        self._prompts: dict[str, Sequence[int]] = {}
        self._looked = True
        """Control has looked for work since the last event."""
        self._lock = threading.Lock()
        try:
            self._file: BinaryIO | None = path.open("xb")
        except OSError as error:
            raise BadInput(
                field="record", value=str(path), why=f"it cannot be written: {error.strerror}",
                remedy="the name of a new file in a directory that can be written",
            ) from None  # fmt: skip
        self._write(header)
        self.flush()
        if self._file is None:
            raise BadInput(
                field="record", value=str(path), why="not even its first line could be written",
                remedy="a directory with free space",
            )  # fmt: skip

    # -- what the loop calls (runtime/local.py: Observer) ---------------------------------------------------------

    def submitted(self, request: Request, now: float) -> None:
        prompt = request.prompt
        self._prompts[request.id] = prompt
        blocks = list(self._hashes(prompt, 0, len(prompt) // self._size))
        self._write(
            Submit(
                t=self._ns(now), id=request.id, prompt_tokens=len(prompt), max_tokens=request.max_tokens, blocks=blocks,
                output_tokens=len(request.output), tenant=self._name(request.tenant),
                group=self._name(request.prefix_group), weight=request.weight, salt=self._name(_border(request)),
                priority=request.priority, joined=self._joined(), uncached=request.sampling.reads_prompt,
            )
        )  # fmt: skip

    def refused(self, request_id: str) -> None:
        del self._prompts[request_id]

    def cancelled(self, request_id: str, now: float) -> None:
        if self._prompts.pop(request_id, None) is not None:
            self._write(Cancel(t=self._ns(now), id=request_id, joined=self._joined()))

    def planned(self, step: Step, now: float) -> None:
        self._write(plan_of(step, self._ns(now)))

    def looked(self) -> None:
        self._looked = True
        if self._buffer and monotonic() >= self._flush_due:
            self.flush()

    def done(self, result: StepResult, started: float, ended: float, now: float) -> None:
        ends = []
        for request_id, finish in result.finished.items():
            prompt = self._prompts.pop(request_id, None)
            # Cancelled while its last step ran: control has forgotten it.
            if prompt is not None:
                tokens = [*prompt, *finish.output]
                # The last token was never an input, so no block with it is ever looked at.
                blocks = list(self._hashes(tokens, len(prompt) // self._size, (len(tokens) - 1) // self._size))
                ends.append(End(request_id, finish.reason, len(finish.output), blocks))
        for request_id in result.failed:
            self._prompts.pop(request_id, None)
        self._write(
            Done(
                t=self._ns(now), n=result.number, start=self._ns(started), end=self._ns(ended), finished=ends,
                failed=result.failed, joined=self._joined(),
            )
        )  # fmt: skip

    # -- the file ---------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Everything so far is in the file, and can be read from it."""
        with self._lock:
            if self._file is not None:
                data = bytes(self._buffer)
                if self._deflate is not None:
                    data = self._deflate.compress(data) + self._deflate.flush(zlib.Z_SYNC_FLUSH)
                try:
                    self._file.write(data)
                    self._file.flush()
                except OSError as error:
                    self._abandon(error)
            self._buffer.clear()
        self._flush_due = monotonic() + FLUSH_EVERY_S

    def close(self) -> None:
        self.flush()
        with self._lock:
            if self._file is not None:
                try:
                    if self._deflate is not None:
                        self._file.write(self._deflate.flush())
                    self._file.close()
                except OSError as error:
                    self._abandon(error)
                self._file = None

    def _abandon(self, error: OSError) -> None:
        """A full disk ends the recording, not the run. What was written until then can be replayed."""
        _log.error("recording into %s has ended: %s", self.path, error.strerror or error)
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()

    def _write(self, line: Line) -> None:
        if self._file is None:
            return
        with self._lock:
            self._encoder.encode_into(line, self._buffer, -1)
            self._buffer += b"\n"
        if len(self._buffer) > FLUSH_BYTES:
            self.flush()

    def _joined(self) -> bool:
        looked, self._looked = self._looked, False
        return not looked

    def _ns(self, seconds: float) -> int:
        return round(seconds * NANOSECONDS) - self._origin_ns

    def _name(self, text: str) -> str:
        return self._hash(text.encode()) if text else ""

    def _hashes(self, tokens: Sequence[int], first: int, last: int) -> Iterator[str]:
        """Of blocks [first, last)."""
        size = self._size
        data = memoryview(array("q", tokens[first * size : last * size])).cast("B")
        for at in range(0, len(data), 8 * size):
            yield self._hash(data[at : at + 8 * size])

    def _hash(self, data: bytes | memoryview) -> str:
        return hashlib.blake2b(data, digest_size=_HASH_BYTES, key=self._key).hexdigest()


def recorder_for(
    path: Path, deployment: Deployment, *, blocks: int, max_sequence_tokens: int, host_blocks: int, now: float,
    model: str = "",
) -> Recorder:  # fmt: skip
    """A recorder of one replica of `deployment`, whose clock shows `now`. Raises BadInput: no such file can be made."""
    data = deployment.model_dump(mode="json", exclude={"server"})
    header = Header(
        format=FORMAT, penstock=version("penstock"), deployment=data, blocks=blocks,
        block_tokens=deployment.memory.block_tokens, max_sequence_tokens=max_sequence_tokens, host_blocks=host_blocks,
        plan_ahead=deployment.policy.plan_ahead, model=model, origin_ns=round(now * NANOSECONDS),
    )  # fmt: skip
    return Recorder(path, header)


def free_name(path: Path) -> Path:
    """`path`, or with a number before its suffixes if there is such a file: a worker that replaces another records too.

    run.jsonl.gz, run.2.jsonl.gz, run.3.jsonl.gz, ...
    """
    stem, dot, suffixes = path.name.partition(".")
    number, found = 1, path
    while os.path.lexists(found):
        number += 1
        found = path.with_name(f"{stem}.{number}{dot}{suffixes}")
    return found


def _border(request: Request) -> str:
    """Salt and adapter, neither of which cached prefixes cross: a replay needs to know no more of either."""
    return f"{request.salt}\0{request.adapter}" if request.adapter else request.salt

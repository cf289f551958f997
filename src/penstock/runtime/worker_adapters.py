"""The worker's part in loading and unloading adapters, between the messages (wire.py) and the engine.

Files are read in a thread of their own, while steps go on; then the control thread makes the adapter known, which takes
no time. An adapter is unloaded once the engine holds no sequence that has it: a cancelled one may still be in a step
that runs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from penstock.errors import UnsupportedAdapter
from penstock.runtime import wire


class Loaded(Protocol):
    """What an engine says of an adapter it has loaded."""

    @property
    def rank(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def digest(self) -> str: ...


class AdapterHost(Protocol):
    """An executor that has adapters (engine/engine.py)."""

    def read_adapter(self, path: str, *, digest: str | None = None) -> Any:
        """In any thread. Raises UnsupportedAdapter."""

    def add_adapter(self, name: str, read: Any) -> Loaded:
        """What was read is known under a name. Raises UnsupportedAdapter; nothing is kept then."""

    def unload_adapter(self, name: str) -> bool:
        """False: not yet, a sequence has it."""


@dataclass(frozen=True, slots=True)
class Read:
    """The reading thread's news: what it has read, or why not."""

    asked: wire.LoadAdapter
    read: Any
    error: Exception | None


class WorkerAdapters:
    """`send` gets the answers, `tell` what a reading thread has to say: hand it to `read`. No host: all is refused."""

    def __init__(
        self, host: AdapterHost | None, send: Callable[[wire.FromWorker], None], tell: Callable[[Read], None]
    ) -> None:
        self._host, self._send, self._tell = host, send, tell
        self._leaving: list[str] = []

    def start(self, adapters: Sequence[wire.LoadAdapter], *, restart: bool) -> None:
        """Load those that are there from the start. Raises UnsupportedAdapter, unless it is a restart."""
        for one in adapters:
            self.take(self._read(one), raise_error=not restart)
        if adapters:
            names = ", ".join(one.path for one in adapters)
            self._send(wire.Phase("load adapters", time.monotonic(), f"{len(adapters)}: {names}"[:200]))

    def load(self, asked: wire.LoadAdapter) -> None:
        """Begin to read one; `tell` hears of the end."""
        threading.Thread(target=lambda: self._tell(self._read(asked)), name="adapter", daemon=True).start()

    def take(self, news: Read, *, raise_error: bool = False) -> None:
        """Make what was read known, and say so; or say why not."""
        error, name = news.error, news.asked.name
        if error is None and self._host is not None:
            try:
                loaded = self._host.add_adapter(name, news.read)
                self._send(wire.AdapterLoaded(name, loaded.rank, loaded.bytes, loaded.digest))
                return
            except UnsupportedAdapter as one:
                error = one
        if not isinstance(error, UnsupportedAdapter):
            error = UnsupportedAdapter(
                field="lora_path", value=news.asked.path, why=f"it cannot be read: {error!r}", remedy="a whole adapter"
            )
        if raise_error:
            raise error
        self._send(wire.AdapterRefused(name, error.field, str(error.value)[:200], error.why, error.remedy))

    def _read(self, asked: wire.LoadAdapter) -> Read:
        try:
            if self._host is None:
                raise UnsupportedAdapter(
                    field="model.adapters",
                    value=asked.path,
                    why="what computes here has no adapters",
                    remedy="an engine",
                )
            return Read(asked, self._host.read_adapter(asked.path, digest=asked.digest), None)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a file, only this adapter is refused
            return Read(asked, None, error)

    def unload(self, name: str) -> None:
        """Unload one as soon as that can be."""
        self._leaving.append(name)
        self.stepped()

    def stepped(self) -> None:
        """A step has ended, and sequences may have left with it."""
        if self._leaving and self._host is not None:
            gone = [name for name in self._leaving if self._host.unload_adapter(name)]
            self._leaving = [name for name in self._leaving if name not in gone]
            for name in gone:
                self._send(wire.AdapterGone(name))

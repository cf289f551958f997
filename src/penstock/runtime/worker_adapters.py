"""The worker's part in loading and unloading adapters, between the messages (wire.py) and the engine.

An adapter is unloaded once the engine holds no sequence that has it: a cancelled one may still be in a step that runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

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

    def load_adapter(self, name: str, path: str, *, digest: str | None = None) -> Loaded:
        """Raises UnsupportedAdapter; nothing is kept then."""

    def unload_adapter(self, name: str) -> bool:
        """False: not yet, a sequence has it."""


class WorkerAdapters:
    """`send` gets the answers. Without a host every adapter is refused."""

    def __init__(self, host: AdapterHost | None, send: Callable[[wire.FromWorker], None]) -> None:
        self._host, self._send = host, send
        self._leaving: list[str] = []

    def start(self, adapters: Sequence[wire.LoadAdapter], *, restart: bool) -> None:
        """Load those that are there from the start. Raises UnsupportedAdapter, unless it is a restart."""
        for one in adapters:
            self.load(one, raise_error=not restart)
        if adapters:
            names = ", ".join(one.path for one in adapters)
            self._send(wire.Phase("load adapters", time.monotonic(), f"{len(adapters)}: {names}"[:200]))

    def load(self, asked: wire.LoadAdapter, *, raise_error: bool = False) -> None:
        """Load one and say what became of it."""
        try:
            if self._host is None:
                raise UnsupportedAdapter(
                    field="model.adapters",
                    value=asked.path,
                    why="what computes here has no adapters",
                    remedy="an engine",
                )
            loaded = self._host.load_adapter(asked.name, asked.path, digest=asked.digest)
        except UnsupportedAdapter as error:
            if raise_error:
                raise
            self._send(wire.AdapterRefused(asked.name, error.field, str(error.value)[:200], error.why, error.remedy))
            return
        self._send(wire.AdapterLoaded(asked.name, loaded.rank, loaded.bytes, loaded.digest))

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

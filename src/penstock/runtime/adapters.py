"""The front end's list of adapters: what is loaded, under which name, and what a new worker must load again.

A client's name stands for one load of one directory, and so does the handle that requests carry (`Request.adapter`):
when a name is given to another adapter later, neither running requests nor cached prefixes of the old one are touched.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from penstock.deployment import Model
from penstock.deployment.serving import ADAPTER_NAME
from penstock.errors import BadInput, PenstockError, RequestFailed, UnsupportedAdapter
from penstock.runtime import wire

MOST_TRIES: Final = 2
"""Workers that may end while they load an adapter: the next one is started without it."""

_NAME: Final = re.compile(ADAPTER_NAME)
_log = logging.getLogger("penstock.runtime")


@dataclass(frozen=True, slots=True)
class Adapter:
    """One that requests can name. `rank`, `bytes` and `digest` are the worker's to tell."""

    name: str
    handle: str
    path: str
    rank: int = 0
    bytes: int = 0
    digest: str | None = None


class Adapters:
    """One event loop's. `send` reaches the worker if it is ready; `unused` returns when no request has a handle."""

    def __init__(
        self, model: Model, send: Callable[[wire.ToWorker], None], unused: Callable[[str], Awaitable[None]]
    ) -> None:
        self.room = model.adapter_room
        self._directory = model.adapter_directory
        self._send, self._unused = send, unused
        self._count = 0
        self._loaded: dict[str, Adapter] = {}
        """By handle, as is all below."""
        self._loading: dict[str, tuple[Adapter, asyncio.Future[Adapter]]] = {}
        self._going: dict[str, tuple[Adapter, asyncio.Future[None]]] = {}
        self._unused_now: set[str] = set()
        """Those of `_going` that no request has any more."""
        self._announced: set[str] = set()
        """What the newest worker was told of at its start."""
        self._tries: dict[str, int] = {}
        """How many workers were asked to load one of `_loading`."""
        self._from_file = [self._new(name, str(Path(path).resolve())) for name, path in model.adapters.items()]

    def listed(self) -> list[Adapter]:
        """Those that requests can name, in the order they came."""
        return list(self._loaded.values())

    def handle(self, name: str) -> str | None:
        """What a request that names it carries; None: there is none of that name."""
        return next((one.handle for one in self._loaded.values() if one.name == name), None)

    def fingerprint(self, handle: str) -> str:
        """Eight hex digits that change with the adapter's files."""
        return (self._loaded[handle].digest or "")[:8]

    def name(self, handle: str) -> str:
        """The client's name of a handle."""
        return handle.rpartition("#")[0]

    async def load(self, name: str, path: str, *, taken: str = "", in_place: bool = False) -> Adapter:
        """Load the adapter in directory `path` as `name`.

        `taken`: the model's own name. `in_place`: the name may stand for another adapter, which goes when this one is
        there and no request has it any more; there must be room for both meanwhile.

        Raises: UnsupportedAdapter: no such place, no room, or as the engine says.
        """
        if self._directory is None:
            raise UnsupportedAdapter(
                field="lora_path", value=path, why="this server loads adapters at its start only",
                remedy="model.adapter_directory: where others may be loaded from",
            )  # fmt: skip
        if not _NAME.fullmatch(name):
            raise UnsupportedAdapter(
                field="lora_name", value=name, why="it is no name for an adapter",
                remedy="up to 128 letters, digits and . _ : / -, beginning with a letter or digit",
            )  # fmt: skip
        before = self.handle(name)
        loading = any(one.name == name for one, _ in self._loading.values())
        if name == taken or loading or (before is not None and not in_place):
            raise UnsupportedAdapter(
                field="lora_name", value=name, why="this name is taken", remedy="another name, or unload that one first"
            )
        adapter = self._new(name, str(inside(self._directory, path)))
        future: asyncio.Future[Adapter] = asyncio.get_running_loop().create_future()
        self._loading[adapter.handle] = adapter, future
        self._tries[adapter.handle] = 1
        self._send(wire.LoadAdapter(adapter.handle, adapter.path))
        try:
            loaded = await future
        finally:
            self._loading.pop(adapter.handle, None)
            self._tries.pop(adapter.handle, None)
        if before is not None:
            await self._retire(before)
        return loaded

    async def unload(self, name: str) -> None:
        """New requests cannot name it from now on; returns when the last that did is over and its room is free.

        Raises: UnsupportedAdapter: there is none of that name.
        """
        handle = self.handle(name)
        if handle is None:
            raise UnsupportedAdapter(
                field="lora_name", value=name, why="no adapter of this name is loaded",
                remedy="one of: " + (", ".join(one.name for one in self._loaded.values()) or "none is loaded"),
            )  # fmt: skip
        await self._retire(handle)

    async def _retire(self, handle: str) -> None:
        """Let no request have it from now on; return when it is gone."""
        adapter = self._loaded.pop(handle, None)
        if adapter is None:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._going[handle] = adapter, future
        await self._unused(handle)
        self._unused_now.add(handle)
        self._send(wire.UnloadAdapter(handle))
        await future

    # --- what the service tells ------------------------------------------------------------------------------------

    def to_load(self) -> list[wire.LoadAdapter]:
        """What a worker that starts must load: at first what the deployment names, later all there is.

        One on its way out is among them: there may be requests that have it.
        """
        first, self._from_file = self._from_file, []
        for one in first:
            self._loaded[one.handle] = one
        for handle in list(self._loading):
            self._tries[handle] = self._tries.get(handle, 0) + 1
            if self._tries[handle] > MOST_TRIES:
                why = f"{MOST_TRIES} workers ended while they loaded adapter {self.name(handle)}"
                self._fail(handle, RequestFailed(why))
                del self._loading[handle]
        coming_and_going = (one for one, _ in [*self._loading.values(), *self._going.values()])
        everything = [*self._loaded.values(), *coming_and_going]
        self._announced = {one.handle for one in everything}
        return [wire.LoadAdapter(one.handle, one.path, one.digest) for one in everything]

    def worker_ready(self) -> None:
        """What was asked for while it started, it hears now."""
        for handle, (adapter, _) in self._loading.items():
            if handle not in self._announced:
                self._send(wire.LoadAdapter(handle, adapter.path))
        for handle in self._unused_now:
            self._send(wire.UnloadAdapter(handle))

    def received(self, message: wire.AboutAdapters) -> None:
        """The worker's answer."""
        match message:
            case wire.AdapterLoaded(handle, rank, size, digest):
                adapter, future = self._loading.get(handle, (self._loaded.get(handle), None))
                if adapter is None:
                    if handle not in self._going:  # whoever asked has left; those are for a new worker, and in use
                        self._send(wire.UnloadAdapter(handle))
                    return
                loaded = replace(adapter, rank=rank, bytes=size, digest=digest)
                self._loaded[handle] = loaded
                if future is not None and not future.done():
                    future.set_result(loaded)
            case wire.AdapterRefused(handle, field, value, why, remedy):
                error = UnsupportedAdapter(field=field, value=value, why=why, remedy=remedy)
                if self._loaded.pop(handle, None) is not None:
                    _log.error("adapter %s could not be loaded again: %s", self.name(handle), error)
                self._fail(handle, error)
            case wire.AdapterGone(handle):
                self._unused_now.discard(handle)
                if (going := self._going.pop(handle, None)) is not None and not going[1].done():
                    going[1].set_result(None)

    def close(self, error: PenstockError) -> None:
        """There will be no other answer."""
        for handle in list(self._loading):
            self._fail(handle, error)
        for _, future in self._going.values():
            if not future.done():
                future.set_result(None)

    def _fail(self, handle: str, error: BadInput | PenstockError) -> None:
        _, future = self._loading.get(handle, (None, None))
        if future is not None and not future.done():
            future.set_exception(error)

    def _new(self, name: str, path: str) -> Adapter:
        self._count += 1
        return Adapter(name, f"{name}#{self._count}", path)


def inside(directory: str, path: str) -> Path:
    """`path`, followed to where it leads, which must be in `directory`; a relative one starts there.

    Raises: UnsupportedAdapter: it leads elsewhere, or nowhere. The answer does not tell which.
    """
    root = Path(directory).resolve()
    try:
        found = (root / path).resolve(strict=True)
        if found != root and found.is_relative_to(root) and found.is_dir():
            return found
    except (OSError, ValueError, RuntimeError):
        pass  # said below: a client does not learn what else is on the disk
    raise UnsupportedAdapter(
        field="lora_path", value=path, why="there is no such directory among those this server may load",
        remedy="a directory below model.adapter_directory",
    )  # fmt: skip

"""The adapters that are loaded: a bounded number of them, each within a bounded rank, by the name requests carry."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch

from penstock.engine.architecture import Architecture
from penstock.engine.lora.adapter import adapter_digest, check_rank, load_adapter, plan_adapter
from penstock.engine.lora.step import StepAdapters, Weights
from penstock.errors import InvalidRequest, UnsupportedAdapter

NONE: Final = -1
"""Number of the rows without an adapter."""


@dataclass(frozen=True, slots=True)
class LoadedAdapter:
    """`bytes` of weights in memory; `digest` of its files."""

    name: str
    number: int
    rank: int
    bytes: int
    digest: str
    weights: Weights


@dataclass(frozen=True, slots=True)
class ReadAdapter:
    """One that is in memory and that nobody can name yet."""

    rank: int
    elements: int
    digest: str
    weights: Weights


class AdapterRegistry:
    """Adapters by name, and by the number that rows carry. Numbers are used again, names are the caller's to manage."""

    def __init__(
        self, architecture: Architecture, *, most: int, max_rank: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        """`most`: adapters at one time. 0: there are none, and rows need not be looked at."""
        self._architecture, self._most, self._max_rank = architecture, most, max_rank
        self._dtype, self._device = dtype, device
        self._by_name: dict[str, LoadedAdapter] = {}
        self._by_number: list[LoadedAdapter | None] = []

    def __len__(self) -> int:
        return len(self._by_name)

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def load(self, name: str, path: Path | str, *, digest: str | None = None) -> LoadedAdapter:
        """Load the adapter in directory `path` under a new name; with `digest`, only if its files have that one.

        Raises: UnsupportedAdapter: as `check_room` and `read`.
        """
        self.check_room(name)
        return self.add(name, self.read(path, digest=digest))

    def check_room(self, name: str) -> None:
        """Raises UnsupportedAdapter: the name is taken, or there is no room."""
        if name in self._by_name:
            raise UnsupportedAdapter(
                field="lora_name", value=name, why="an adapter of this name is loaded", remedy="unload it first"
            )
        if len(self._by_name) >= self._most:
            raise UnsupportedAdapter(
                field="lora_name",
                value=name,
                why=f"{len(self._by_name)} adapters are loaded, and there is room for {self._most}",
                remedy="unload one first, or a larger model.max_adapters",
            )

    def read(self, path: Path | str, *, digest: str | None = None) -> ReadAdapter:
        """The adapter in directory `path`; any thread may call this. Takes as long as reading its files twice.

        Raises: UnsupportedAdapter: its rank is too large, its files have changed, or as `plan_adapter`.
        """
        plan = plan_adapter(path, self._architecture)
        check_rank(plan, self._max_rank)
        found = adapter_digest(path)
        if digest is not None and found != digest:
            raise UnsupportedAdapter(
                field="lora_path",
                value=str(path),
                why="its files have changed since it was loaded",
                remedy="load it under another name",
            )
        return ReadAdapter(plan.rank, plan.elements, found, load_adapter(plan, self._dtype, self._device))

    def add(self, name: str, read: ReadAdapter) -> LoadedAdapter:
        """Requests may name it from now on. Raises UnsupportedAdapter as `check_room`."""
        self.check_room(name)
        number = next((n for n, one in enumerate(self._by_number) if one is None), len(self._by_number))
        element = torch.empty(0, dtype=self._dtype).element_size()
        loaded = LoadedAdapter(name, number, read.rank, read.elements * element, read.digest, read.weights)
        self._by_name[name] = loaded
        if number == len(self._by_number):
            self._by_number.append(None)
        self._by_number[number] = loaded
        return loaded

    def unload(self, name: str) -> None:
        """Forget it, if there is one; the caller sees to it that nobody uses it."""
        loaded = self._by_name.pop(name, None)
        if loaded is not None:
            self._by_number[loaded.number] = None

    def number(self, name: str) -> int:
        """What rows of a request with this adapter carry; NONE for ''. Raises InvalidRequest: it is not loaded."""
        if not name:
            return NONE
        loaded = self._by_name.get(name)
        if loaded is None:
            raise InvalidRequest(
                field="model", value=name, why="this adapter is not loaded", remedy="load it, or the model's own name"
            )
        return loaded.number

    def of_rows(self, numbers: np.ndarray) -> StepAdapters | None:
        """The step's adapters, given each row's number [T]. None: no row has one."""
        used = np.unique(numbers)
        present: Iterable[int] = used[used != NONE].tolist()
        segments: list[tuple[Weights, torch.Tensor | None]] = []
        for number in present:
            loaded = self._by_number[number]
            assert loaded is not None
            if len(used) == 1:
                return StepAdapters([(loaded.weights, None)])
            rows = torch.from_numpy(np.flatnonzero(numbers == number)).to(self._device)
            segments.append((loaded.weights, rows))
        return StepAdapters(segments) if segments else None

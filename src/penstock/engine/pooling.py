"""Embeddings: hidden states of a prompt's rows, gathered chunk by chunk into one vector.

How a model wants it is in the files of sentence-transformers beside the checkpoint: 1_Pooling/config.json, and in
modules.json whether a Normalize module follows. Either can be overruled. What they ask for and is not implemented
(other poolings, dense layers) is refused: a vector that is almost right is worse than none.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from penstock.control.step import Chunk
from penstock.errors import UnsupportedModel

if TYPE_CHECKING:
    from torch import Tensor

    from penstock.engine.sequences import Sequence

_MODES: Final = {
    "pooling_mode_lasttoken": "last",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "lasttoken": "last",
}


@dataclass(frozen=True, slots=True)
class Pooling:
    """`kind`: the last row's state, or the mean of all rows'. `normalize`: brought to length 1."""

    kind: Literal["last", "mean"]
    normalize: bool


def read_pooling(
    path: Path | str, *, kind: Literal["last", "mean"] | None = None, normalize: bool | None = None
) -> Pooling | None:
    """The pooling of the checkpoint in directory `path`, or what is given; None: the model has no embeddings.

    Raises: UnsupportedModel: its own files ask for something else, and `kind` does not overrule them.
    """
    path = Path(path)
    modules = _json(path / "modules.json")
    types = [str(one.get("type", "")).rpartition(".")[2] for one in modules] if isinstance(modules, list) else []
    if kind is None:
        config = _json(path / "1_Pooling" / "config.json")
        if not isinstance(config, dict):
            return None
        kind = _kind(config)
        others = [name for name in types if name not in ("Transformer", "Pooling", "Normalize")]
        if others:
            raise UnsupportedModel(
                field="modules.json", value=others, why="these steps after pooling are not implemented",
                remedy="another embedding model, or model.pooling to have the hidden states without them",
            )  # fmt: skip
    if normalize is None:
        normalize = "Normalize" in types if types else True
    return Pooling(kind, normalize)


def _kind(config: Mapping[str, Any]) -> Literal["last", "mean"]:
    chosen = config.get("pooling_mode")
    asked = [chosen] if isinstance(chosen, str) else [mode for key, mode in _MODES.items() if config.get(key) is True]
    asked = [_MODES.get(mode, mode) for mode in asked]
    match asked:
        case ["last"]:
            return "last"
        case ["mean"]:
            return "mean"
    raise UnsupportedModel(
        field="1_Pooling/config.json", value=asked, why="this pooling is not implemented",
        remedy="a model that pools the last token or the mean, or model.pooling to choose one of them",
    )  # fmt: skip


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UnsupportedModel(
            field=file.name, value=str(file), why=f"it cannot be read ({error})", remedy="the checkpoint's own file"
        ) from None


@dataclass(frozen=True, slots=True)
class PooledRows:
    """Rows of one chunk whose states are wanted. `last`: the vector is complete with them."""

    id: str
    start: int
    """Position of the chunk's first token."""
    rows: np.ndarray
    last: bool


class Pooler:
    """Sums of the prompts that are being computed."""

    def __init__(self, pooling: Pooling) -> None:
        self.pooling = pooling
        self._sums: dict[str, tuple[np.ndarray, int]] = {}

    def rows(self, chunks: Iterable[Chunk], sequences: Mapping[str, Sequence], first_row: int) -> list[PooledRows]:
        """What is wanted of a step whose chunks' rows begin at `first_row`."""
        found: list[PooledRows] = []
        row = first_row
        for chunk in chunks:
            end = row + chunk.tokens
            if sequences[chunk.id].request.sampling.embed:
                if self.pooling.kind == "mean":
                    found.append(PooledRows(chunk.id, chunk.start, np.arange(row, end), chunk.last))
                elif chunk.last:
                    found.append(PooledRows(chunk.id, chunk.start, np.arange(end - 1, end), last=True))
            row = end
        return found

    def take(self, wanted: Iterable[PooledRows], hidden: Tensor) -> dict[str, bytes]:
        """hidden [R, D]: the rows of all `wanted`, one after the other. Vectors that are complete, as float32."""
        states = hidden.float().cpu().numpy()
        vectors: dict[str, bytes] = {}
        at = 0
        for one in wanted:
            mine = states[at : at + len(one.rows)].astype(np.float64)
            at += len(one.rows)
            total, count = mine.sum(axis=0), len(mine)
            # A prompt that was evicted begins anew.
            if one.start and one.id in self._sums:
                before, rows = self._sums[one.id]
                total, count = total + before, count + rows
            if not one.last:
                self._sums[one.id] = total, count
                continue
            self._sums.pop(one.id, None)
            vectors[one.id] = self._finish(total / count)
        return vectors

    def forget(self, request_id: str) -> None:
        """It was cancelled, perhaps."""
        self._sums.pop(request_id, None)

    def _finish(self, vector: np.ndarray) -> bytes:
        if self.pooling.normalize:
            vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
        return vector.astype("<f4").tobytes()

"""All layers of a decoder in one call of layers.c: what a step pays per kernel, it then pays once.

A step of one sequence is a hundred kernels of a few microseconds each; as much goes into each call from Python and into
waking the other threads. The result is that of the kernels one by one, to the bit.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from penstock.engine.batch import Batch
from penstock.engine.ops.build import load_library
from penstock.engine.ops.kernels import Heads, QkNorm
from penstock.engine.ops.rope import Angles
from penstock.engine.scratch import Scratch
from penstock.engine.weights.panels import Panels

_POINTER, _LONG, _DOUBLE = ctypes.c_void_p, ctypes.c_long, ctypes.c_double
MOST_KINDS: Final = 8
"""Different windows of attention in one model."""
MATRICES: Final = ("qkv", "out", "gate_up", "down")
PARTS: Final = ("norm", "qkv", "rope", "attention", "out", "gate_up", "activation", "down")
"""What `seconds` tells apart, in this order."""


@dataclass(frozen=True, slots=True)
class LayerParts:
    """One layer of models/decoder.py with a gated silu MLP and all matrices packed."""

    attention_norm: Tensor
    mlp_norm: Tensor
    attention_output_norm: Tensor | None
    mlp_output_norm: Tensor | None
    qk_norm: QkNorm | None
    matrices: Sequence[tuple[Panels, Tensor | None]]
    """With biases: qkv, out, gate_up, down."""
    scale: float
    window: int | None


class _Matrix(ctypes.Structure):
    _fields_ = [
        ("packed", _POINTER), ("bias", _POINTER), ("scales", _POINTER), ("sums", _POINTER),
        ("outputs", _LONG), ("inputs", _LONG), ("kind", _LONG),
    ]  # fmt: skip


class _Layer(ctypes.Structure):
    _fields_ = [
        ("attention_norm", _POINTER), ("mlp_norm", _POINTER), ("attention_output_norm", _POINTER),
        ("mlp_output_norm", _POINTER), ("query_norm", _POINTER), ("key_norm", _POINTER),
        ("qkv", _Matrix), ("out", _Matrix), ("gate_up", _Matrix), ("down", _Matrix),
        ("scale", _DOUBLE), ("kind", _LONG),
    ]  # fmt: skip


class _Model(ctypes.Structure):
    _fields_ = [
        ("layers", ctypes.POINTER(_Layer)),
        ("count", _LONG), ("hidden", _LONG), ("inner", _LONG), ("heads", _LONG), ("kv_heads", _LONG), ("head", _LONG),
        ("half", _LONG), ("eps", _DOUBLE), ("softcap", _DOUBLE),
    ]  # fmt: skip


class _Kind(ctypes.Structure):
    _fields_ = [("window", _LONG), ("turned", _LONG), ("cosine", _POINTER), ("sine", _POINTER)]


class _Sequences(ctypes.Structure):
    _fields_ = [
        ("first_row", _POINTER), ("lengths", _POINTER), ("table_rows", _POINTER), ("tables", _POINTER),
        ("group_first", _POINTER), ("members", _POINTER), ("shared", _POINTER),
        ("qkv_stride", _LONG), ("block_stride", _LONG), ("table_stride", _LONG), ("segments", _LONG),
        ("groups", _LONG), ("heads", _LONG), ("kv_heads", _LONG), ("head", _LONG), ("block_tokens", _LONG),
    ]  # fmt: skip


class _Step(ctypes.Structure):
    _fields_ = [
        ("x", _POINTER), ("delta", _POINTER), ("pool", _POINTER), ("kv_index", _POINTER),
        ("rows", _LONG), ("layer_stride", _LONG),
        ("kinds", ctypes.POINTER(_Kind)), ("kind_count", _LONG),
        ("sequences", _Sequences), ("seconds", ctypes.POINTER(_DOUBLE)),
    ]  # fmt: skip


class NativeLayers:
    """The layers of one model, whose weights stay where they are. May be used by several engines, in turn."""

    def __init__(self, parts: Sequence[LayerParts], heads: Heads, eps: float, softcap: float | None) -> None:
        """At most MOST_KINDS different windows. Raises NativeUnavailable."""
        library = load_library()
        self._run, self._bytes = library.penstock_layers, library.penstock_layers_bytes
        self._run.argtypes, self._run.restype = [_POINTER, _POINTER, _POINTER, _LONG], ctypes.c_int
        self._bytes.argtypes, self._bytes.restype = [_POINTER, _LONG, _LONG], _LONG
        self._parts = tuple(parts)  # keeps the tensors
        self.norms = sum(
            2 + (part.attention_output_norm is not None) + (part.mlp_output_norm is not None) for part in self._parts
        )
        """In all layers."""
        self._heads = heads
        self._windows = sorted({part.window or 0 for part in parts})
        first = parts[0]
        self._layers = (_Layer * len(parts))(*(self._layer(part) for part in parts))
        self._model = _Model(
            ctypes.cast(self._layers, ctypes.POINTER(_Layer)), len(parts), first.attention_norm.shape[0],
            first.matrices[3][0].shape[1], heads.query, heads.kv, heads.width,
            first.attention_norm.dtype is torch.bfloat16, eps, softcap or 0.0,
        )  # fmt: skip
        self._model_at = ctypes.addressof(self._model)
        self._memory = Scratch()
        self.seconds: ctypes.Array[ctypes.c_double] | None = None
        """Where to add what each of PARTS takes; None: nobody asks."""

    @property
    def count(self) -> int:
        """Layers."""
        return len(self._parts)

    @property
    def working_bytes(self) -> int:
        """Held between steps."""
        return self._memory.held

    def shapes(self) -> dict[str, tuple[int, int]]:
        """(outputs, inputs) of the first layer's MATRICES."""
        return {name: panels.shape for name, (panels, _) in zip(MATRICES, self._parts[0].matrices, strict=True)}

    def run(self, x: Tensor, batch: Batch, pool: Tensor, angles: Angles, windowed: Angles) -> Tensor:
        """x [T, D] through all layers, in place, but for the last sum: what is to be added to x is returned.

        `angles` of layers without a window and `windowed` of those with one. Writes this step's KV to `pool`.
        """
        rows, threads = x.shape[0], torch.get_num_threads()
        delta = torch.empty_like(x)
        heads, segments, shared = self._heads, batch.segments, batch.segments.prefixes
        kinds = (_Kind * len(self._windows))()
        for kind, window in zip(kinds, self._windows, strict=True):
            cosine, sine = windowed if window else angles
            kind.window, kind.turned, kind.cosine, kind.sine = (
                window, 2 * cosine.shape[1], cosine.data_ptr(), sine.data_ptr()
            )  # fmt: skip
        step = _Step(
            x.data_ptr(), delta.data_ptr(), pool.data_ptr(), batch.kv_index.data_ptr(), rows, pool.stride(1),
            ctypes.cast(kinds, ctypes.POINTER(_Kind)), len(kinds),
            _Sequences(
                segments.first_row.data_ptr(), segments.lengths.data_ptr(), segments.table_rows.data_ptr(),
                segments.tables.data_ptr(), None if shared is None else shared.first.data_ptr(),
                None if shared is None else shared.members.data_ptr(),
                None if shared is None else shared.blocks.data_ptr(), (heads.query + 2 * heads.kv) * heads.width,
                pool.stride(0), segments.tables.stride(0), segments.lengths.shape[0],
                0 if shared is None else shared.blocks.shape[0], heads.query, heads.kv, heads.width, pool.shape[4],
            ),
            self.seconds,
        )  # fmt: skip
        memory = self._memory.take(self._bytes(self._model_at, rows, threads))
        if self._run(self._model_at, ctypes.addressof(step), memory.data_ptr(), threads):
            raise MemoryError("attention could not get its working memory")
        return delta

    def _layer(self, part: LayerParts) -> _Layer:
        norm = part.qk_norm
        return _Layer(
            part.attention_norm.data_ptr(), part.mlp_norm.data_ptr(), _address(part.attention_output_norm),
            _address(part.mlp_output_norm), None if norm is None else norm.query.data_ptr(),
            None if norm is None else norm.key.data_ptr(), *map(_matrix, part.matrices),
            part.scale, self._windows.index(part.window or 0),
        )  # fmt: skip


def _matrix(weight: tuple[Panels, Tensor | None]) -> _Matrix:
    panels, bias = weight
    outputs, inputs = panels.shape
    return _Matrix(
        panels.packed.data_ptr(), _address(bias), _address(panels.scales), _address(panels.sums), outputs, inputs,
        panels.kind,
    )  # fmt: skip


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()

"""Rotary position embeddings: which angle each row turns by.

The static types (default, linear, llama3, yarn) are one table of frequencies, so cosines and sines are looked up by
position. Dynamic NTK makes the base a function of the sequence's length, and so has no table. What is matched there
is `transformers` generating one sequence from a fresh model: the prompt turns by the frequencies of the prompt's
length, and each output token by those of the length it brings the sequence to; keys once written are not turned
again. `rope_length` carries that length per row, so chunking, batching, eviction and swapping change nothing. Two
limits follow. In a batch, `transformers` uses the longest sequence's frequencies for all; here each sequence keeps
its own. And a cached prefix is exact only if it was computed for a prompt within max_position_embeddings or of the
same length, because beyond that the keys depend on the whole prompt's length.

LongRoPE (Phi-3) has two sets of factors: a sequence of at most original_max_position_embeddings tokens turns by the
short ones, all of it, and a longer one by the long ones. `transformers` computes a sequence anew when it grows beyond;
here the caller sees to that (engine.py: `recompute_beyond`), and `rope_length` is the length the sequence has.

Sources: RoPE, Su et al., 2021; linear, Chen et al., 2023; dynamic NTK, Peng et al., 2023; YaRN, Peng et al., ICLR 2024;
LongRoPE, Ding et al., ICML 2024.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from penstock.engine.architecture import Architecture, Rope

Angles = tuple[Tensor, Tensor]
"""Cosine and sine, float32 [T, R / 2] each."""


class RopeAngles:
    """Cosines and sines for rows of any positions; the table of the static types is built once."""

    def __init__(self, rope: Rope, head_dim: int, max_positions: int, table_tokens: int, device: torch.device) -> None:
        """`table_tokens`: positions 0 to table_tokens - 1 will be asked for."""
        self._rope, self._head_dim, self._max_positions, self._device = rope, head_dim, max_positions, device
        self._table: tuple[Tensor, Tensor] | None = None
        self._long: tuple[Tensor, Tensor] | None = None
        if rope.type == "dynamic":
            return
        self._table = self._tabulate(*static_frequencies(rope, head_dim), table_tokens)
        if rope.type == "longrope" and table_tokens > rope.parameters["original_max_position_embeddings"]:
            self._long = self._tabulate(*_longrope(rope, head_dim, "long_factor"), table_tokens)

    def __call__(self, positions: Tensor, rope_lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """Cosine and sine, float32 [T, H / 2] each, for rows at `positions` [T] int64.

        `rope_lengths` [T] int64 counts only where `depends_on_length`: the sequence length whose frequencies the row
        turns by.
        """
        if self._long is not None:
            assert rope_lengths is not None
            assert self._table is not None
            long = (rope_lengths > self._rope.parameters["original_max_position_embeddings"])[:, None]
            cos, sin = (
                torch.where(long, stretched.index_select(0, positions), plain.index_select(0, positions))
                for stretched, plain in zip(self._long, self._table, strict=True)
            )
            return cos, sin
        if self._table is not None:
            cos, sin = self._table
            return cos.index_select(0, positions), sin.index_select(0, positions)
        assert rope_lengths is not None
        angle = positions[:, None].float() * self._dynamic_frequencies(rope_lengths)
        return angle.cos(), angle.sin()

    @property
    def depends_on_length(self) -> bool:
        return self._table is None or self._long is not None

    def _tabulate(self, frequencies: Tensor, scaling: float, tokens: int) -> tuple[Tensor, Tensor]:
        angle = torch.arange(tokens, dtype=torch.float32)[:, None] * frequencies
        return (angle.cos() * scaling).to(self._device), (angle.sin() * scaling).to(self._device)

    def _dynamic_frequencies(self, lengths: Tensor) -> Tensor:
        """[T, H / 2], one row of frequencies per length."""
        factor = float(self._rope.parameters["factor"])
        dim = self._rope.width or self._head_dim
        lengths = lengths.clamp_min(self._max_positions)
        stretch = (factor * lengths / self._max_positions) - (factor - 1)
        base = self._rope.theta * stretch ** (dim / (dim - 2))
        exponent = torch.arange(0, dim, 2, dtype=torch.float32, device=lengths.device) / dim
        return 1.0 / (base[:, None] ** exponent)


class LayerAngles:
    """The angles of a model's layers: those of the windowed ones are others in some families (Gemma 3)."""

    def __init__(self, architecture: Architecture, table_tokens: int, device: torch.device) -> None:
        a = architecture
        assert a.rope is not None
        self._all = RopeAngles(a.rope, a.head_dim, a.max_positions, table_tokens, device)
        self._windowed = self._all
        if a.window_rope is not None:
            self._windowed = RopeAngles(a.window_rope, a.head_dim, a.max_positions, table_tokens, device)

    def __call__(self, positions: Tensor, rope_lengths: Tensor | None) -> tuple[Angles, Angles]:
        """As RopeAngles, for layers without a window and for layers with one."""
        angles = self._all(positions, rope_lengths)
        return angles, angles if self._windowed is self._all else self._windowed(positions, rope_lengths)

    @property
    def depends_on_length(self) -> bool:
        return self._all.depends_on_length


def static_frequencies(rope: Rope, head_dim: int) -> tuple[Tensor, float]:
    """Radians per position, float32 [R / 2], and the factor on cosine and sine (1 for all but yarn and longrope).

    R is `rope.width`, or the whole head.
    """
    if rope.type == "longrope":
        return _longrope(rope, head_dim, "short_factor")
    head_dim = rope.width or head_dim
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    frequencies = 1.0 / (rope.theta**exponent)
    given = rope.parameters
    if rope.type == "linear":
        return frequencies / float(given["factor"]), 1.0
    if rope.type == "llama3":
        return _llama3(frequencies, given), 1.0
    if rope.type == "yarn":
        return _yarn(rope, frequencies, head_dim)
    return frequencies, 1.0


def _longrope(rope: Rope, head_dim: int, factors: str) -> tuple[Tensor, float]:
    given, width = rope.parameters, rope.width or head_dim
    exponent = torch.arange(0, width, 2, dtype=torch.float32) / width
    frequencies = 1.0 / (torch.tensor(given[factors], dtype=torch.float32) * rope.theta**exponent)
    factor, scaling = given["factor"], given.get("attention_factor")
    if scaling is None:
        original = given["original_max_position_embeddings"]
        scaling = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return frequencies, float(scaling)


def _llama3(frequencies: Tensor, given: Mapping[str, Any]) -> Tensor:
    """Long wavelengths are stretched by `factor`, short ones kept, those between blended."""
    factor, low, high = given["factor"], given["low_freq_factor"], given["high_freq_factor"]
    original = given["original_max_position_embeddings"]
    wavelength = 2 * math.pi / frequencies
    blend = ((original / wavelength - low) / (high - low)).clamp(0.0, 1.0)
    return torch.where(
        wavelength > original / low,
        frequencies / factor,
        torch.where(
            wavelength < original / high, frequencies, (1 - blend) * frequencies / factor + blend * frequencies
        ),
    )


def _yarn(rope: Rope, frequencies: Tensor, head_dim: int) -> tuple[Tensor, float]:
    """Dimensions that turn often within the original context are kept, the rest interpolated, with a ramp between."""
    given = rope.parameters
    factor, original = given["factor"], given["original_max_position_embeddings"]

    def dimension_of(rotations: float) -> float:
        return head_dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension_of(given.get("beta_fast") or 32), dimension_of(given.get("beta_slow") or 1)
    if given.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    kept = 1 - ramp
    scaled = frequencies / factor * (1 - kept) + frequencies * kept

    def magnitude(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    attention = given.get("attention_factor")
    if attention is None:
        mscale, all_dim = given.get("mscale"), given.get("mscale_all_dim")
        attention = magnitude(mscale) / magnitude(all_dim) if mscale and all_dim else magnitude(1.0)
    return scaled, float(attention)

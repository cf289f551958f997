"""Rotary position embeddings: which angle each row turns by.

The static types (default, linear, llama3, yarn) are one table of frequencies, so cosines and sines are looked up by
position. Dynamic NTK makes the base a function of the sequence's length, and so has no table. What is matched there
is `transformers` generating one sequence from a fresh model: the prompt turns by the frequencies of the prompt's
length, and each output token by those of the length it brings the sequence to; keys once written are not turned
again. `rope_length` carries that length per row, so chunking, batching, eviction and swapping change nothing. Two
limits follow. In a batch, `transformers` uses the longest sequence's frequencies for all; here each sequence keeps
its own. And a cached prefix is exact only if it was computed for a prompt within max_position_embeddings or of the
same length, because beyond that the keys depend on the whole prompt's length.

Sources: RoPE, Su et al., 2021; linear, Chen et al., 2023; dynamic NTK, Peng et al., 2023; YaRN, Peng et al., ICLR 2024.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from penstock.engine.architecture import Rope


class RopeAngles:
    """Cosines and sines for rows of any positions; the table of the static types is built once."""

    def __init__(self, rope: Rope, head_dim: int, max_positions: int, table_tokens: int, device: torch.device) -> None:
        """`table_tokens`: positions 0 to table_tokens - 1 will be asked for."""
        self._rope, self._head_dim, self._max_positions, self._device = rope, head_dim, max_positions, device
        self._scaling = 1.0
        self._table: tuple[Tensor, Tensor] | None = None
        if rope.type == "dynamic":
            return
        frequencies, self._scaling = static_frequencies(rope, head_dim)
        angle = torch.arange(table_tokens, dtype=torch.float32)[:, None] * frequencies
        self._table = ((angle.cos() * self._scaling).to(device), (angle.sin() * self._scaling).to(device))

    def __call__(self, positions: Tensor, rope_lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """Cosine and sine, float32 [T, H / 2] each, for rows at `positions` [T] int64.

        `rope_lengths` [T] int64 counts only for dynamic NTK: the sequence length whose frequencies the row turns by.
        """
        if self._table is not None:
            cos, sin = self._table
            return cos.index_select(0, positions), sin.index_select(0, positions)
        assert rope_lengths is not None
        angle = positions[:, None].float() * self._dynamic_frequencies(rope_lengths)
        return angle.cos(), angle.sin()

    @property
    def depends_on_length(self) -> bool:
        return self._table is None

    def _dynamic_frequencies(self, lengths: Tensor) -> Tensor:
        """[T, H / 2], one row of frequencies per length."""
        factor = float(self._rope.parameters["factor"])
        dim = self._head_dim
        lengths = lengths.clamp_min(self._max_positions)
        stretch = (factor * lengths / self._max_positions) - (factor - 1)
        base = self._rope.theta * stretch ** (dim / (dim - 2))
        exponent = torch.arange(0, dim, 2, dtype=torch.float32, device=lengths.device) / dim
        return 1.0 / (base[:, None] ** exponent)


def static_frequencies(rope: Rope, head_dim: int) -> tuple[Tensor, float]:
    """Radians per position, float32 [H / 2], and the factor on cosine and sine (1 for all but yarn)."""
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

"""The sampler: one row of logits per sequence in, one token per row out.

A batch that is greedy throughout is one reduction. Otherwise rows are taken apart: those with a grammar, a logit_bias,
banned stop ids or penalties are copied and edited, greedy ones take their largest logit, and the others go in groups
that fit a cache through weights, truncation and draw. No row ever sees another: the same logits, seed and position give
the same token in any batch, and a row that cannot be sampled fails alone.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penstock.control.request import GUIDE_FAILED, Request, Sampling
from penstock.control.step import TokenLogprobs
from penstock.engine.guide.masks import Masks
from penstock.engine.guide.matching import Matching
from penstock.engine.sampling.check import check_request
from penstock.engine.sampling.draw import BLOCK, draw, uniforms
from penstock.engine.sampling.logprobs import token_logprobs
from penstock.engine.sampling.penalties import SeenTokens, uses_penalties
from penstock.engine.sampling.truncation import (
    SMALL_VOCABULARY,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    keep_top_p_of_rows,
)
from penstock.errors import ProtocolError

NOT_NUMBERS: Final = "the model's logits are not finite numbers"
ALL_BANNED: Final = "no token is left: every one is banned by logit_bias or min_tokens"
GROUP_WEIGHTS: Final = 1 << 17
"""Weights worked on at a time: 512 KiB, which stays in a core's own cache."""


@dataclass(slots=True)
class SampledRows:
    """Row r of the logits gave `tokens[r]`, unless r is in `failed`; what stands there then means nothing."""

    tokens: NDArray[np.int64]
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)
    """Only of rows that asked."""
    failed: dict[int, str] = field(default_factory=dict)
    complete: set[int] = field(default_factory=set)
    """Slots whose grammar allows no token after this one."""


class _Slot:
    """What one request wants, ready for use."""

    __slots__ = ("banned_until", "bias_ids", "bias_values", "place", "sampling", "seen", "stop_ids")

    def __init__(self, request: Request, place: Matching | None) -> None:
        sampling = request.sampling
        self.place = place
        self.sampling: Sampling = sampling
        bias = dict(sampling.logit_bias)
        self.bias_ids = np.fromiter(bias.keys(), np.int64, len(bias))
        self.bias_values = np.fromiter(bias.values(), np.float32, len(bias))
        self.stop_ids = np.array(sampling.stop_ids, np.int64)
        self.banned_until = sampling.min_tokens if sampling.stop_ids else 0
        self.seen = SeenTokens(request) if uses_penalties(sampling) else None

    @property
    def edits(self) -> bool:
        return self.seen is not None or len(self.bias_ids) > 0 or self.banned_until > 0 or self.place is not None

    def edit(self, row: NDArray[np.float32], output_length: int) -> None:
        """Apply what changes single logits, in place. The grammar is first: nothing that comes later undoes a ban."""
        if self.place is not None:
            self.place.edit(row)
        row[self.bias_ids] += self.bias_values
        if output_length < self.banned_until:
            row[self.stop_ids] = -np.inf
        if self.seen is not None:
            self.seen.apply(row)


def _why_none(state: _Slot, largest: float) -> str:
    if largest != -np.inf:
        return NOT_NUMBERS
    # What a grammar leaves and a ban takes away is the client's to change.
    return ALL_BANNED if state.place is None else GUIDE_FAILED + ALL_BANNED


class Sampler:
    """Options and produced tokens of up to `max_seqs` requests, by slot."""

    def __init__(
        self, max_seqs: int, vocab_size: int, device: torch.device | str = "cpu", *, entropy: int | None = None
    ) -> None:
        """`device`: of the logits. `entropy`: makes requests without a seed repeatable; None asks the system."""
        self.max_seqs, self.vocab_size, self.device = max_seqs, vocab_size, torch.device(device)
        self._fresh_seeds = np.random.Generator(np.random.PCG64(secrets.randbits(128) if entropy is None else entropy))
        self._slots: list[_Slot | None] = [None] * max_seqs
        self._taken = np.zeros(max_seqs, bool)
        self._temperature = np.zeros(max_seqs)
        self._seed = np.zeros(max_seqs, np.uint64)
        self._truncates = np.zeros(max_seqs, bool)
        self._edits = np.zeros(max_seqs, bool)
        self._wants_logprobs = np.zeros(max_seqs, bool)
        self._masks = Masks()

    def check_request(self, request: Request) -> None:
        """Raise InvalidRequest, naming the field, if `add` would."""
        check_request(request, self.vocab_size)

    def close(self) -> None:
        """No more masks of grammars are computed."""
        self._masks.close()

    def add(self, slot: int, request: Request, place: Matching | None = None) -> None:
        """Take `slot` for a request; tokens in `request.output` count as produced, as does what `place` has seen.

        Raises:
            InvalidRequest: an option outside its range, an id outside the vocabulary. The slot stays free.
            ProtocolError: there is no such slot, or it is taken.
        """
        if not 0 <= slot < self.max_seqs or self._slots[slot] is not None:
            raise ProtocolError(f"sampling slot {slot} of {self.max_seqs} is taken or does not exist")
        check_request(request, self.vocab_size)
        sampling = request.sampling
        self._slots[slot] = state = _Slot(request, place)
        self._taken[slot] = True
        seed = sampling.seed
        if seed is None:
            seed = int(self._fresh_seeds.integers(2**64, dtype=np.uint64))
        self._seed[slot] = seed % 2**64
        self._temperature[slot] = sampling.temperature
        self._truncates[slot] = 0 < sampling.top_k < self.vocab_size or sampling.top_p < 1 or sampling.min_p > 0
        self._edits[slot] = state.edits
        self._wants_logprobs[slot] = sampling.logprobs is not None

    def is_plain(self, slot: int) -> bool:
        """Whether the request in `slot` takes its largest logit, whatever came before, and wants nothing else."""
        return not (self._edits[slot] or self._temperature[slot] > 0 or self._wants_logprobs[slot])

    def remove(self, slot: int) -> None:
        """Forget the request in `slot`. Raises ProtocolError when there is none."""
        if not 0 <= slot < self.max_seqs or self._slots[slot] is None:
            raise ProtocolError(f"sampling slot {slot} of {self.max_seqs} is free or does not exist")
        self._slots[slot] = None
        self._taken[slot] = False

    def statistics(self) -> dict[str, int]:
        """Slots taken, and how many of them are random, edited or want log-probabilities."""
        taken = self._taken
        return {
            "slots_used": int(taken.sum()),
            "random": int((taken & (self._temperature > 0)).sum()),
            "edited": int((taken & self._edits).sum()),
            "logprobs": int((taken & self._wants_logprobs).sum()),
        }

    def sample(self, logits: Tensor, slots: NDArray[Any], output_lengths: NDArray[Any]) -> SampledRows:
        """One token for each row, and count it as produced.

        Args:
            logits: [R, V], any float type, on any device; left as they are.
            slots: [R], distinct. output_lengths: [R], output tokens each request has so far.

        Raises: ProtocolError: shapes do not fit, or a slot is free.
        """
        if logits.shape != (len(slots), self.vocab_size) or len(output_lengths) != len(slots):
            raise ProtocolError(
                f"{len(slots)} slots and {len(output_lengths)} lengths for logits of shape {tuple(logits.shape)}, "
                f"vocabulary {self.vocab_size}"
            )
        if not len(slots):
            return SampledRows(np.zeros(0, np.int64))
        if not self._taken[slots].all():
            raise ProtocolError(f"sampling slot {int(slots[np.argmin(self._taken[slots])])} is free")
        greedy, peak = _largest(logits)
        result = SampledRows(greedy)
        fine = np.isfinite(peak)
        if not fine.all():
            result.failed = dict.fromkeys(np.flatnonzero(~fine).tolist(), NOT_NUMBERS)
        edited = np.flatnonzero(self._edits[slots] & fine)
        random = np.flatnonzero((self._temperature[slots] > 0) & fine)
        if len(edited):
            self._sample_edited(logits, slots, output_lengths, edited, result)
            random = random[~self._edits[slots[random]]]
        group = max(1, GROUP_WEIGHTS // self.vocab_size)
        for start in range(0, len(random), group):
            rows = random[start : start + group]
            result.tokens[rows] = self._draw(_host(logits, rows), peak[rows], slots[rows], output_lengths[rows])
        for row in np.flatnonzero(self._wants_logprobs[slots] & fine).tolist():
            if row not in result.failed:
                wanted = self._state(slots[row]).sampling.logprobs or 0
                result.logprobs[row] = token_logprobs(
                    _host(logits, np.array([row]))[0], int(result.tokens[row]), wanted
                )
        return result

    def _sample_edited(
        self,
        logits: Tensor,
        slots: NDArray[Any],
        output_lengths: NDArray[Any],
        rows: NDArray[np.int64],
        result: SampledRows,
    ) -> None:
        states = {row: self._state(slots[row]) for row in rows.tolist()}
        guided = [state.place for state in states.values() if state.place is not None]
        if guided:
            self._masks.wait(guided)
        for row, state in states.items():
            if state.place is not None and state.place.error:
                result.failed[row] = state.place.error
        rows = np.array([row for row in states if row not in result.failed], np.int64)
        group = max(1, GROUP_WEIGHTS // self.vocab_size)
        for start in range(0, len(rows), group):
            some = rows[start : start + group]
            scores = _host(logits, some)
            for row, row_scores in zip(some.tolist(), scores, strict=True):
                states[row].edit(row_scores, int(output_lengths[row]))
            tokens, peak = _largest_of(scores)
            random = np.flatnonzero((self._temperature[slots[some]] > 0) & np.isfinite(peak))
            if len(random):
                drawn = some[random]
                tokens[random] = self._draw(scores[random], peak[random], slots[drawn], output_lengths[drawn])
            for row, token, largest in zip(some.tolist(), tokens.tolist(), peak.tolist(), strict=True):
                if not np.isfinite(largest):
                    result.failed[row] = _why_none(states[row], largest)
                    continue
                result.tokens[row] = token
                self._count(states[row], token, int(slots[row]), result)
        if guided:
            self._masks.start([place for place in guided if not place.complete and not place.error])

    def _count(self, state: _Slot, token: int, slot: int, result: SampledRows) -> None:
        """What later tokens of an edited row depend on."""
        if state.seen is not None:
            state.seen.count(token)
        if state.place is not None:
            state.place.take(token)
            if state.place.complete:
                result.complete.add(slot)

    def _draw(
        self,
        scores: NDArray[np.float32],
        peak: NDArray[np.float32],
        slots: NDArray[Any],
        output_lengths: NDArray[Any],
    ) -> NDArray[np.int64]:
        """Random tokens of rows [n, V] whose largest logits are `peak` [n]."""
        vocab_size = self.vocab_size
        weights = np.zeros((len(scores), -(-vocab_size // BLOCK) * BLOCK), np.float32)
        inner = weights[:, :vocab_size]
        np.subtract(scores, peak[:, None], out=inner)
        with np.errstate(over="ignore"):
            inner /= np.maximum(self._temperature[slots], 1e-30).astype(np.float32)[:, None]
        np.exp(inner, out=inner)
        truncating = np.flatnonzero(self._truncates[slots])
        if len(truncating):
            self._truncate(inner, slots, truncating)
        return draw(weights, uniforms(self._seed[slots], output_lengths))

    def _truncate(self, weights: NDArray[np.float32], slots: NDArray[Any], rows: NDArray[np.int64]) -> None:
        """top_k, then top_p, then min_p, in place on `rows` of weights [n, V]."""
        options = [(row, self._state(slots[row]).sampling) for row in rows.tolist()]
        for row, sampling in options:
            if 0 < sampling.top_k < self.vocab_size:
                keep_top_k(weights[row], sampling.top_k)
        if self.vocab_size <= SMALL_VOCABULARY:
            nucleus = np.array([row for row, sampling in options if sampling.top_p < 1], np.int64)
            if len(nucleus):
                chosen = weights[nucleus]
                keep_top_p_of_rows(chosen, np.array([each.top_p for _, each in options if each.top_p < 1]))
                weights[nucleus] = chosen
        else:
            for row, sampling in options:
                if sampling.top_p < 1:
                    keep_top_p(weights[row], sampling.top_p)
        for row, sampling in options:
            if sampling.min_p > 0:
                keep_min_p(weights[row], sampling.min_p)

    def _state(self, slot: int) -> _Slot:
        state = self._slots[slot]
        if state is None:
            raise ProtocolError(f"sampling slot {slot} is free")
        return state


def _largest(logits: Tensor) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Column and value of each row's largest logit, ties to the lowest column; NaN counts as the largest."""
    if _in_place(logits):
        # One thread of numpy reads memory as fast as it comes, and waits for no other thread.
        return _largest_of(logits.numpy())
    largest, columns = logits.max(dim=1)
    # One copy, since each waits for the device: the bits of a float32 fit beside the columns.
    both = torch.stack([columns, largest.float().view(torch.int32).long()]).cpu().numpy()
    return both[0], both[1].astype(np.int32).view(np.float32)


def _largest_of(scores: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    columns = scores.argmax(axis=1)
    return columns, scores[np.arange(len(scores)), columns]


def _host(logits: Tensor, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """A copy of rows of the logits, as float32 on the host."""
    if _in_place(logits):
        copy: NDArray[np.float32] = logits.numpy()[rows]
        return copy
    return logits[torch.as_tensor(rows, device=logits.device)].float().cpu().numpy()


def _in_place(logits: Tensor) -> bool:
    return logits.device.type == "cpu" and logits.dtype == torch.float32

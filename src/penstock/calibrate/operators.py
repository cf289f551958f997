"""Times of every operator of a model on this machine, measured inside real engine steps (timed_kernels.py).

Decode steps over a grid of sequences and contexts, prompt chunks over a grid of lengths and pasts; each product, norm
and attention of a step gives a sample per layer, and the median of a shape's samples goes into the table. Embedding and
sampler are no kernels: they run by themselves. Steps go through the grid more than once, with a probe of the machine's
speed around each: samples of a disturbed moment count only for shapes that have no others.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Final

import numpy as np
import torch

from penstock.calibrate.designed import DesignedSteps
from penstock.calibrate.probe import DISTURBED, Probe
from penstock.calibrate.timed_kernels import TimedKernels
from penstock.catalog.shape import ModelShape
from penstock.control.request import Request, Sampling
from penstock.engine.engine import Engine
from penstock.engine.loader import LoadedModel
from penstock.engine.models.decoder import Decoder
from penstock.engine.ops.kernels import kernels_for
from penstock.engine.sampling import Sampler
from penstock.twin.calibrated import OperatorTime, time_of
from penstock.twin.layout import Layout, Precision
from penstock.twin.operators import Elementwise, Gemm, Operator
from penstock.twin.step_graph import StepGraph

SEQUENCES: Final = (1, 2, 3, 4, 6, 8, 9, 12, 16, 24, 32, 48, 64, 96, 128)
CONTEXTS: Final = (16, 128, 512, 1024, 2016)
CHUNKS: Final = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
PASTS: Final = (0, 128, 512, 1024, 1536)
DECODE_STEPS: Final = 4
PASSES: Final = 3
ENOUGH: Final = 3
"""Samples that a median is taken of, whatever it takes."""
BLOCK_TOKENS: Final = 16
POOL_BYTES: Final = 192 * 2**20


@dataclass(frozen=True, slots=True)
class Point:
    """A step to measure: what decodes, and its chunks as (past, tokens)."""

    sequences: int = 0
    context: int = 0
    chunks: tuple[tuple[int, int], ...] = ()


class OperatorBench:
    """Measures one loaded model. `run` yields after each point, for a progress bar; then `lines` has the table."""

    def __init__(self, model: LoadedModel, shape: ModelShape, *, longest: int, dtype: str) -> None:
        """`longest`: tokens of the longest sequence to measure; the model's own limit if that is less."""
        architecture = model.architecture
        self.architecture = architecture
        self._model = model
        self._longest = min(longest, architecture.max_sequence_tokens)
        element = 4 if dtype == "float32" else 2
        per_token = architecture.layers * 2 * architecture.kv_heads * architecture.head_dim * element
        per_sequence = -(-self._longest // BLOCK_TOKENS)
        self._blocks = max(2 * per_sequence, POOL_BYTES // (per_token * BLOCK_TOKENS))
        self._graph = StepGraph(
            shape, Layout(), Precision(weights=dtype, experts=dtype, activations=dtype, kv=dtype, head=dtype)
        )
        self._samples: dict[Operator, list[tuple[float, float]]] = defaultdict(list)
        """(slowness of the machine, seconds)."""
        self.steps = self.disturbed = 0
        """Steps that ran while the machine was not itself."""

    def points(self) -> list[Point]:
        """The grid, as far as the model's context and the pool allow."""
        decode_blocks = self._blocks - -(-self._longest // BLOCK_TOKENS)
        decodes = [
            Point(sequences, min(context, self._longest - DECODE_STEPS - 4))
            for sequences in SEQUENCES
            for context in CONTEXTS
            if sequences * -(-(context + DECODE_STEPS) // BLOCK_TOKENS) <= decode_blocks
        ]
        chunks = [
            Point(chunks=((past, tokens),)) for tokens in CHUNKS for past in PASTS if past + tokens < self._longest
        ]
        return list(dict.fromkeys([*decodes, *chunks]))

    def run(self) -> Iterator[Point]:
        """Measure everything, PASSES times over."""
        kernels = TimedKernels(kernels_for(self._model.device))
        if isinstance(self._model.model, Decoder) and (layers := self._model.model.whole(kernels)) is not None:
            kernels.watch(layers)
        engine = Engine(
            self._model, blocks=self._blocks, block_tokens=BLOCK_TOKENS, max_seqs=max(SEQUENCES) + 2, kernels=kernels
        )
        designed = DesignedSteps(engine, blocks=self._blocks, block_tokens=BLOCK_TOKENS, longest=self._longest)
        probe = Probe()
        for number in range(PASSES):
            # The second pass in another order: what is slow for a while is slow for other shapes then.
            points = self.points()
            for point in points if number % 2 == 0 else reversed(points):
                designed.open(point.sequences, point.context, DECODE_STEPS)
                for _ in range(DECODE_STEPS if point.sequences else 1):
                    kernels.clear()
                    before = probe.slowness()
                    designed.step(*point.chunks)
                    slowness = max(before, probe.slowness())
                    self.steps += 1
                    self.disturbed += slowness > DISTURBED
                    self._take(kernels, point, slowness)
                yield point
            self._alone(probe)
        designed.open(0, 0, 0)
        kernels.leave()
        engine.close()

    def lines(self) -> list[OperatorTime]:
        """Medians of the undisturbed samples so far, or of the least disturbed ones, in a fixed order."""
        found = []
        for operator, samples in self._samples.items():
            ordered = sorted(samples)
            calm = [seconds for slowness, seconds in ordered if slowness <= DISTURBED]
            kept = calm if len(calm) >= ENOUGH else [seconds for _, seconds in ordered[:ENOUGH]]
            line = time_of(operator, statistics.median(kept), len(kept))
            if line is not None:
                found.append(line)
        return sorted(found, key=lambda line: (line.kind, line.columns, line.inner, line.rows, line.past, line.context))

    # -- from calls to operators ------------------------------------------------------------------------------------

    def _take(self, kernels: TimedKernels, point: Point, slowness: float) -> None:
        rows = point.sequences + sum(tokens for _, tokens in point.chunks)
        sampled = point.sequences + len(point.chunks)
        attention = [
            *self._graph.decode(point.sequences, point.sequences * (point.context + DECODE_STEPS // 2)),
            *self._graph.prefill(point.chunks),
        ]
        products: dict[tuple[int, int, int], Operator] = {}
        by_kind: dict[tuple[str, int], Operator] = {}
        for placed in (*self._graph.rows(rows), *self._graph.head(sampled)):
            operator = placed.operator
            if isinstance(operator, Gemm):
                products[operator.rows, operator.columns, operator.inner] = operator
            elif isinstance(operator, Elementwise):
                by_kind[operator.kind, operator.rows] = operator
        seconds: dict[Operator, list[float]] = defaultdict(list)
        for call in kernels.take(rows):
            if call.kernel == "linear":
                found = products.get((call.rows, call.columns, call.inner))
            elif call.kernel == "attention":
                found = attention[0].operator if len(attention) == 1 else None
            else:
                found = by_kind.get((call.kernel, call.rows))
            if found is not None:
                seconds[found].append(call.seconds)
        for operator, values in seconds.items():
            # Layers differ in what the caches hold of them; a step pays for all of them, so the mean counts.
            self._samples[operator].append((slowness, sum(values) / len(values)))

    def _alone(self, probe: Probe) -> None:
        """Embedding, sampler; and the KV write, which the RoPE kernel does on its way."""
        architecture = self._model.architecture
        embedding = torch.randn(architecture.vocab_size, architecture.hidden, dtype=self._model.dtype)
        generator = np.random.default_rng(0)
        sampler = Sampler(max(SEQUENCES), architecture.vocab_size)
        for slot in range(max(SEQUENCES)):
            sampler.add(slot, Request(id=str(slot), prompt=(0,), max_tokens=2, sampling=Sampling(temperature=0.0)))
        for rows in (*SEQUENCES, *CHUNKS):
            for placed in self._graph.rows(rows):
                if placed.operator.kind == "embedding":
                    ids = torch.from_numpy(generator.integers(0, architecture.vocab_size, rows))
                    seconds = _timed(partial(embedding.index_select, 0, ids))
                    self._samples[placed.operator].append((probe.slowness(), seconds))
                elif placed.operator.kind == "kv_write":
                    self._samples[placed.operator].append((1.0, 0.0))
        for rows in SEQUENCES:
            logits = torch.randn(rows, architecture.vocab_size)
            slots, lengths = np.arange(rows), np.ones(rows, np.int64)
            for placed in self._graph.head(rows):
                if placed.operator.kind == "sampler":
                    seconds = _timed(partial(sampler.sample, logits, slots, lengths))
                    self._samples[placed.operator].append((probe.slowness(), seconds))


def _timed(run: Callable[[], object], times: int = 5) -> float:
    run()
    found = []
    for _ in range(times):
        started = perf_counter()
        run()
        found.append(perf_counter() - started)
    return statistics.median(found)

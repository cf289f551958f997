"""When requests arrive: open-loop laws, each a value with `times(count, generator)` and `stream(generator)`.

    AtOnce     everything at 0
    Constant   one every 1/rate seconds
    Poisson    independent users
    Gamma      renewal with a chosen coefficient of variation (cv 1 is Poisson, above is bursty)
    OnOff      bursts between silences: the Azure 2023 code trace
    Drifting   Gamma whose rate wanders by minute: the Azure 2023 conversation trace

A closed loop has no law: the driver sends when an answer is complete. `rate` is always the long-run mean of requests
per second. The generator is the caller's; the same seed gives the same times.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from penstock.errors import BadInput

Times = NDArray[np.float64]
BATCH: Final = 4096


class Arrivals(Protocol):
    """A law of arrival."""

    def times(self, count: int, generator: np.random.Generator) -> Times:
        """[count] ascending seconds since the start."""
        ...

    def stream(self, generator: np.random.Generator) -> Iterator[Times]:
        """The same law without end, in ascending batches of any size: memory does not grow with the run."""
        ...


def _renewal(law: Poisson | Gamma, generator: np.random.Generator) -> Iterator[Times]:
    """Batches of a renewal process: each begins where the last one ended."""
    clock = 0.0
    while True:
        batch = clock + law.times(BATCH, generator)
        clock = float(batch[-1])
        yield batch


@dataclass(frozen=True, slots=True)
class Constant:
    """Equal gaps; the first request at 0."""

    rate: float

    def times(self, count: int, generator: np.random.Generator) -> Times:
        del generator  # nothing is random here; the signature is the family's
        return np.arange(count, dtype=np.float64) / self.rate

    def stream(self, generator: np.random.Generator) -> Iterator[Times]:
        del generator
        for begin in itertools.count(0, BATCH):
            yield np.arange(begin, begin + BATCH, dtype=np.float64) / self.rate


@dataclass(frozen=True, slots=True)
class AtOnce:
    """Everything at 0: an offline batch."""

    def times(self, count: int, generator: np.random.Generator) -> Times:
        del generator
        return np.zeros(count)

    def stream(self, generator: np.random.Generator) -> Iterator[Times]:
        del generator
        return itertools.repeat(np.zeros(BATCH))


@dataclass(frozen=True, slots=True)
class Poisson:
    """Exponential gaps."""

    rate: float

    def times(self, count: int, generator: np.random.Generator) -> Times:
        return np.cumsum(generator.exponential(1 / self.rate, count))

    def stream(self, generator: np.random.Generator) -> Iterator[Times]:
        return _renewal(self, generator)


@dataclass(frozen=True, slots=True)
class Gamma:
    """Gamma gaps: shape 1/cv^2, mean 1/rate."""

    rate: float
    cv: float

    def times(self, count: int, generator: np.random.Generator) -> Times:
        shape = 1 / self.cv**2
        return np.cumsum(generator.gamma(shape, 1 / (shape * self.rate), count))

    def stream(self, generator: np.random.Generator) -> Iterator[Times]:
        return _renewal(self, generator)


@dataclass(frozen=True, slots=True)
class OnOff:
    """Poisson bursts between silences, in the proportions of the Azure 2023 code trace, time scaled to `rate`.

    That trace is silent in 57 gaps over 5 s, 2,465 of its 3,436 s (mean 43 s), and sends its 8,819 requests at 9 per
    second in between. Silences are 5 s plus an exponential rest, bursts exponential. Its CV of gaps is 13; this one's
    is about 12.
    """

    rate: float
    trace_rate: float = 8819 / 3436
    on_s: float = (3436 - 2465) / 58
    off_s: float = 2465 / 57
    shortest_off_s: float = 5.0

    def times(self, count: int, generator: np.random.Generator) -> Times:
        pieces: list[Times] = [np.empty(0)]
        made = 0
        bursts = self.stream(generator)
        while made < count:
            pieces.append(next(bursts))
            made += pieces[-1].size
        return np.concatenate(pieces)[:count]

    def stream(self, generator: np.random.Generator) -> Iterator[Times]:
        on_rate = self.trace_rate * (self.on_s + self.off_s) / self.on_s
        clock = 0.0
        while True:
            length = generator.exponential(self.on_s)
            burst = clock + np.sort(generator.uniform(0, length, generator.poisson(on_rate * length)))
            yield burst * (self.trace_rate / self.rate)
            clock += length + self.shortest_off_s + generator.exponential(self.off_s - self.shortest_off_s)


@dataclass(frozen=True, slots=True)
class Drifting:
    """Gamma arrivals whose rate drifts from minute to minute, as in the Azure 2023 conversation trace.

    The rate of minute m is rate x (1 + x_m), x a stationary AR(1) with standard deviation 0.21 and lag-one correlation
    0.8: these give the trace's index of dispersion, 16 at 60 s and 56 at 300 s. Inside a minute gaps are Gamma with
    shape 0.84. The long-run mean is `rate`; a run of a few minutes may lie 20 % off it, as the trace itself does.
    """

    rate: float
    drift: float = 0.21
    correlation: float = 0.8
    shape: float = 0.8353
    window_s: float = 60.0
    least: float = 0.1

    def times(self, count: int, generator: np.random.Generator) -> Times:
        # Events of a unit-rate renewal process happen in "operational time"; wall time is where the integral of the
        # rate reaches them.
        work = np.cumsum(generator.gamma(self.shape, 1 / self.shape, count))
        edges, integral = [0.0], [0.0]
        x = generator.normal(0, self.drift)
        noise = self.drift * np.sqrt(1 - self.correlation**2)
        while count and integral[-1] < work[-1]:
            level = max(self.least, 1 + x)
            edges.append(edges[-1] + self.window_s)
            integral.append(integral[-1] + self.rate * level * self.window_s)
            x = self.correlation * x + generator.normal(0, noise)
        return np.interp(work, integral, edges)

    def stream(self, generator: np.random.Generator) -> Iterator[Times]:
        """A window at a time; inside it work arrives as it does in `times`."""
        x = generator.normal(0, self.drift)
        noise = self.drift * np.sqrt(1 - self.correlation**2)
        wait = generator.gamma(self.shape, 1 / self.shape)
        for window in itertools.count():
            rate = self.rate * max(self.least, 1 + x)
            work = rate * self.window_s
            events = []
            while wait < work:
                events.append(wait)
                wait += generator.gamma(self.shape, 1 / self.shape)
            yield window * self.window_s + np.array(events, dtype=np.float64) / rate
            wait -= work
            x = self.correlation * x + generator.normal(0, noise)


SHAPES: Final = ("constant", "poisson", "gamma", "azure-conv", "azure-code")


def arrivals(shape: str, rate: float, *, cv: float = 1.0) -> Arrivals:
    """The law of this name. Raises BadInput: unknown name, or a rate or cv that is not positive."""
    for field, value in (("rate", rate), ("cv", cv)):
        if not 0 < value < float("inf"):
            raise BadInput(field=field, value=value, why="it must be a positive number", remedy="such as 1")
    match shape:
        case "constant":
            return Constant(rate)
        case "poisson":
            return Poisson(rate)
        case "gamma":
            return Gamma(rate, cv)
        case "azure-conv":
            return Drifting(rate)
        case "azure-code":
            return OnOff(rate)
    raise BadInput(field="shape", value=shape, why="no such law of arrival", remedy="one of " + ", ".join(SHAPES))

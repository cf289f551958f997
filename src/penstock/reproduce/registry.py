"""What a reproduction is: rows of the paper's number beside ours, each with its tolerance, source and verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from importlib import import_module
from typing import Any, Final, Literal

from penstock.errors import BadInput

Verdict = Literal["pass", "fail", "info"]
Kind = Literal["within", "at_least", "at_most", "equal"]

PAPERS: Final[dict[str, tuple[str, str]]] = {
    "genz": ("genz", "Operator roofline and collectives for LLM platforms (GenZ, arXiv 2406.01698)"),
    "gppperf-gemm": ("gppperf_gemm", "What a learned GEMM price is worth (GPPerf, arXiv 2411.16954)"),
    "hopper-dissect": ("hopper_dissect", "Matrix instructions and memory of Hopper, Ada, Ampere (arXiv 2402.13499)"),
    "hpx-stream": ("hpx_stream", "STREAM through an abstraction, local and remote memory (HPX compute, ISC 2016)"),
    "idealized-runtime": ("idealized_runtime", "Idealized runtime of ten LLMs (NeurIPS 2023, arXiv 2305.02440)"),
    "long-context-peak": ("long_context_peak", "Four limits of long-context serving (arXiv 2405.08944)"),
}
"""Name to module and one line of what it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One claim. `paper` None: the source gives no number, and ours stands for information."""

    claim: str
    paper: float | None
    ours: float
    unit: str
    verdict: Verdict
    tolerance: str
    source: str
    """Where the paper's number is from, and what ours rests on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reproduction:
    """All rows of one paper."""

    name: str
    title: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    """What could not be recomputed, and why."""

    @property
    def passed(self) -> bool:
        return not any(row.verdict == "fail" for row in self.rows)

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed}


@dataclass(slots=True)
class Sheet:
    """Collects rows; each method is one way to compare."""

    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def within(self, claim: str, paper: float, ours: float, unit: str, share: float, source: str) -> None:
        """Pass when |ours - paper| <= share x |paper|."""
        shown = f"±{100 * share:g} %" if share >= 1e-4 else "exact"
        self._add(claim, paper, ours, unit, abs(ours - paper) <= share * abs(paper), shown, source)

    def equal(self, claim: str, paper: float, ours: float, unit: str, source: str) -> None:
        """Pass when they are the same number: counts, ranks, signs."""
        self._add(claim, paper, ours, unit, ours == paper, "exact", source)

    def at_least(self, claim: str, paper: float, ours: float, unit: str, source: str) -> None:
        self._add(claim, paper, ours, unit, ours >= paper, "at least", source)

    def at_most(self, claim: str, paper: float, ours: float, unit: str, source: str) -> None:
        self._add(claim, paper, ours, unit, ours <= paper, "at most", source)

    def info(self, claim: str, ours: float, unit: str, source: str, paper: float | None = None) -> None:
        """A number without a verdict."""
        self.rows.append(
            Row(claim=claim, paper=paper, ours=ours, unit=unit, verdict="info", tolerance="-", source=source)
        )

    def note(self, text: str) -> None:
        self.notes.append(text)

    def close(self, name: str) -> Reproduction:
        return Reproduction(name=name, title=PAPERS[name][1], rows=tuple(self.rows), notes=tuple(self.notes))

    def _add(self, claim: str, paper: float, ours: float, unit: str, ok: bool, tolerance: str, source: str) -> None:
        verdict: Verdict = "pass" if ok else "fail"
        self.rows.append(
            Row(claim=claim, paper=paper, ours=ours, unit=unit, verdict=verdict, tolerance=tolerance, source=source)
        )


def reproduce(name: str) -> Reproduction:
    """Run the reproduction called `name`.

    Raises:
        BadInput: there is none of that name; the message names the nearest.
    """
    if name not in PAPERS:
        near = get_close_matches(name, PAPERS, n=3, cutoff=0.4) or sorted(PAPERS)
        raise BadInput(
            field="name", value=name, why="there is no reproduction of that name",
            remedy=f"{', '.join(near)}; `penstock reproduce` lists all",
        )  # fmt: skip
    run: Callable[[], Reproduction] = import_module(f"penstock.reproduce.{PAPERS[name][0]}").run
    return run()

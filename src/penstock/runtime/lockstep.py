"""One replica whose attention is data-parallel: a scheduler and KV of its own for each rank, steps together.

The experts of every layer need the rows of all ranks, so a rank's step lasts as long as the longest of them, and no
rank begins the next one before (vLLM's and SGLang's data-parallel ranks). A rank without work waits along. Requests are
shared out once, when they come. Stretches in which all ranks merely decode on are coasted, as in instance.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from penstock.control.cluster.router import Router, Target
from penstock.control.request import Request
from penstock.runtime.driven import IDLE, Driven
from penstock.runtime.instance import STRETCH, Instance
from penstock.twin.load import StepLoad
from penstock.twin.step_price import StepPrice
from penstock.twin.twin import Pricing


class Unpriced(Pricing):
    """For the twin of one rank: how long its step takes is known when all ranks' loads are."""

    def seconds(self, load: StepLoad) -> float:
        return 0.0

    def decode_ends(
        self, decoding: int, context: int, squares: int, now: float, most: int, until: float
    ) -> list[float]:
        raise AssertionError("a rank alone knows no times")


class Lockstep(Driven):
    """Drives the ranks of one replica.

    Args:
        number: which replica of the cluster this is.
        ranks: its schedulers, whose twins are `Unpriced`; their numbers are those of the lanes they report to.
        price: of what they do together.
        router: which rank serves a request.
        plan_ahead: as the ranks have it.
        coast: go through stretches of plain decodes at once. Same steps, same times.
    """

    def __init__(
        self, number: int, ranks: Sequence[Instance], price: StepPrice, router: Router, *, plan_ahead: bool,
        coast: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(number)
        self._ranks = list(ranks)
        self._targets: list[Target] = list(ranks)
        self._price, self._router = price, router
        self._plan_ahead, self._coast = plan_ahead, coast
        self._chosen = self._ranks[0]
        for rank in self._ranks:
            rank.peers = self._ranks

    def lanes(self) -> list[Instance]:
        return self._ranks

    def waiting(self) -> int:
        return sum([rank.waiting() for rank in self._ranks])

    def lane(self, request: Request) -> int:
        self._chosen = self._ranks[self._router.choose(request, self._targets)]
        return self._chosen.number

    def submit(
        self, request: Request, now: float, *, output_tokens: int, index: int, output: Sequence[int] = ()
    ) -> None:
        if self._ends:
            self._interrupt(now)
        self._chosen.submit(request, now, output_tokens=output_tokens, index=index, output=output)
        self.outstanding += 1

    def start(self, now: float) -> None:
        """Between steps a request waits for all ranks; ranks that plan ahead plan it at once."""
        if self.wake == IDLE:
            self._launch(now)
        elif self._plan_ahead:
            for rank in self._ranks:
                rank.plan_next(now)
        if self._coast and not self._ends:
            self._stretch()

    def fire(self) -> None:
        """The running step of all ranks has ended."""
        if self._ends:
            self._skip()
        now = self._end
        outstanding = 0
        for rank in self._ranks:
            if rank.running is not None:
                rank.conclude(now)
            outstanding += rank.outstanding
        self.outstanding = outstanding
        self._launch(now)
        if self._coast:
            self._stretch()

    # -- inside -------------------------------------------------------------------------------------------------

    def _launch(self, now: float) -> None:
        """The next step of each rank that has one."""
        began = False
        for rank in self._ranks:
            if rank.follow(now):
                began = True
            else:
                rank.twin.rest()
        if not began:
            self.wake = IDLE
            return
        end = now + self._price.lockstep([rank.twin.load for rank in self._ranks])
        self.wake = self._end = end
        for rank in self._ranks:
            if rank.running is not None:
                rank.last_until(end)
        if self._plan_ahead:
            for rank in self._ranks:
                rank.plan_next(now)

    def _stretch(self) -> None:
        """Compute how far only plain decodes follow in all ranks, if at all."""
        if self.wake == IDLE or self._end >= self.horizon:
            return
        most = STRETCH
        for rank in self._ranks:
            if rank.running is not None:
                most = min(most, rank.quiet())
            elif rank.outstanding:
                return  # it begins with the next step
            if most <= 0:
                return
        loads = [rank.twin.next_load() for rank in self._ranks]
        self._ends = self._price.lockstep_ends(loads, self._end, most, self.horizon)
        self.wake = self._ends[-1]

    def _skip(self) -> None:
        """The stretch is over but for its last step, which runs. An observer sees all ranks at one step."""
        ends, self._ends = self._ends, []
        running = [rank for rank in self._ranks if rank.running is not None]
        for rank in running:
            rank.tell_step()
        for rank in running:
            rank.coast(len(ends))
        for rank in running:
            rank.tell_coasted(ends)
        self._end = ends[-1]

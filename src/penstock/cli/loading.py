"""What the start of a server shows while the weights are read: a bar on a terminal, a line now and then in a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from rich.console import Console

from penstock.cli.console import Narrator
from penstock.units import format_bytes

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LINE_EVERY_S: Final = 5.0


class Loading:
    """Give `read` to the service, and call `over` when a phase ends: what comes next may be another reading."""

    def __init__(self, narrator: Narrator, clock: Callable[[], float] = time.monotonic) -> None:
        self._narrator, self._clock = narrator, clock
        self._bar: tuple[Progress, TaskID] | None = None
        self._told: float | None = None
        """When the last line was written, or reading was first heard of."""

    def read(self, done: int, total: int) -> None:
        """So many bytes of so many."""
        if isinstance(self._narrator, Console) and self._narrator.is_terminal:
            progress, task = self._bar = self._bar or _bar(self._narrator, total)
            progress.update(task, completed=done)
            return
        now = self._clock()
        self._told = now if self._told is None else self._told
        if now - self._told >= LINE_EVERY_S:
            self._told = now
            self._narrator.print(f"[dim]  reading      {format_bytes(done)} of {format_bytes(total)} of weights[/]")

    def over(self) -> None:
        """Take the bar away, if there is one."""
        if self._bar is not None:
            self._bar[0].stop()
        self._bar = self._told = None


def _bar(console: Console, total: int) -> tuple[Progress, TaskID]:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn()
    progress = Progress(*columns, console=console, transient=True, refresh_per_second=4)
    progress.start()
    return progress, progress.add_task("load weights", total=total)

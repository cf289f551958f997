"""Many simulations of one deployment, keys varied: in processes of this machine, or on Ray where an address is given.

Each point is a whole simulation in a process of its own, so points are independent, and each gives the same bits as it
would alone. Results come as they end; order them by `Point.number`.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Final

from penstock.deployment import Deployment, keys, overlaid
from penstock.errors import BadInput, InvalidDeployment, PenstockError
from penstock.runtime.cores import usable_cores
from penstock.runtime.parent import die_with_parent

DEFAULT_POINTS: Final = 8
"""Of a range without a count."""


@dataclass(frozen=True, slots=True)
class Point:
    """One simulation of a sweep."""

    number: int
    varied: Mapping[str, Any]
    """Key to the value it has here."""
    summary: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    """Why this point could not be simulated; the others are not touched."""


def full_key(name: str) -> str:
    """The dotted key that `name` means: itself, or the one key that ends with it; workload's wins.

    >>> full_key("rate"), full_key("policy.compose")
    ('workload.rate', 'policy.compose')
    """
    known = keys()
    if name in known:
        return name
    found = [key for key in known if key.endswith("." + name)]
    own = [key for key in found if key == f"workload.{name}"]
    if len(found) == 1 or own:
        return (own or found)[0]
    why = f"it could be {', '.join(found)}" if found else "no key of the deployment file has this name"
    raise InvalidDeployment(field=name, value=name, why=why, remedy="the whole key, as docs/deployment.md lists them")


def parse_vary(text: str) -> tuple[str, tuple[str, ...]]:
    """A key and its values: `rate=1:40` (8 even steps), `rate=1:40:5` (5 of them), `policy.max_seqs=64,128`.

    Whole numbers stay whole where both ends are. Raises BadInput.

    >>> parse_vary("rate=1:4:4")
    ('workload.rate', ('1', '2', '3', '4'))
    """
    name, equals, values = text.partition("=")
    if not equals or not values:
        raise BadInput(
            field="--vary", value=text, why="no values", remedy="such as rate=1:40 or policy.max_seqs=64,128"
        )
    key = full_key(name.strip())
    if "," in values or not _is_number(values.partition(":")[0]) or ":" not in values:
        # A law such as lognormal:6.2:0.9 is a value, not a range.
        return key, tuple(part.strip() for part in values.split(","))
    parts = values.split(":")
    try:
        low, high = float(parts[0]), float(parts[1])
        count = int(parts[2]) if len(parts) == 3 else DEFAULT_POINTS
        if len(parts) > 3 or count < 2 or not -math.inf < low < high < math.inf:
            raise ValueError
    except ValueError:
        raise BadInput(
            field="--vary", value=text, why="not a range", remedy="low:high or low:high:count, as in rate=1:40:9"
        ) from None
    steps = [low + (high - low) * number / (count - 1) for number in range(count)]
    whole = low == int(low) and high == int(high) and key != "workload.rate"
    seen = dict.fromkeys(str(round(step)) if whole else f"{step:.6g}" for step in steps)
    return key, tuple(seen)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def points_of(varied: Sequence[tuple[str, tuple[str, ...]]]) -> list[dict[str, str]]:
    """Every combination of values, the last key fastest."""
    names = [key for key, _ in varied]
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*(values for _, values in varied))]


def sweep(
    data: Mapping[str, Any], points: Sequence[Mapping[str, Any]], *, wall_s: float | None = None,
    processes: int | None = None, ray_address: str | None = None,
) -> Iterator[Point]:  # fmt: skip
    """Simulate `data`, the deployment as plain values, once for each of `points`, dotted keys laid over it.

    Args:
        wall_s: budget of each point.
        processes: at once; None: one per core that this process, or its container, may use.
        ray_address: as `ray.init` takes it; the tasks run there. None: processes of this machine.

    Raises BadInput: Ray was asked for and is not installed.
    """
    jobs = [(number, dict(data), dict(point), wall_s) for number, point in enumerate(points)]
    if ray_address is not None:
        yield from _on_ray(jobs, ray_address)
        return
    count = max(1, min(processes or usable_cores(), len(jobs)))
    # Fresh interpreters: a fork would copy whatever threads the caller has.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        max_workers=count, mp_context=context, initializer=die_with_parent, initargs=(os.getpid(),)
    ) as pool:
        try:
            # Ctrl-C reaches the whole group. Points leave it to the sweep to end them, from their first moment on: they
            # are started here, and signals that are blocked stay so in what is started.
            signals = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                under_way: set[Future[Point]] = {pool.submit(run_point, *job) for job in jobs}
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, signals)
            while under_way:
                done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        except BaseException:
            running = list((pool._processes or {}).values())  # shutdown forgets them
            pool.shutdown(wait=False, cancel_futures=True)
            for process in running:
                process.terminate()
            raise


def run_point(number: int, data: dict[str, Any], varied: dict[str, Any], wall_s: float | None) -> Point:
    """One simulation, from plain values to plain values: what travels between processes."""
    from penstock.report.summary import summary
    from penstock.runtime.simulate import simulate
    from penstock.runtime.virtual import Limits

    try:
        deployment = Deployment.parse(overlaid(data, varied))
        return Point(number, varied, summary(simulate(deployment, limits=Limits(wall_s=wall_s))))
    except PenstockError as error:
        return Point(number, varied, error=str(error))


def _on_ray(jobs: Sequence[tuple[int, dict[str, Any], dict[str, Any], float | None]], address: str) -> Iterator[Point]:
    if find_spec("ray") is None:
        raise BadInput(
            field="--ray", value=address, why="Ray is not installed", remedy="pip install 'penstock[ray]', or no --ray"
        )
    import ray

    ray.init(address=address, ignore_reinit_error=True, log_to_driver=False)
    remote = ray.remote(run_point)
    under_way = [remote.remote(*job) for job in jobs]
    try:
        while under_way:
            done, under_way = ray.wait(under_way)
            yield from ray.get(done)
    finally:
        for task in under_way:
            ray.cancel(task)
        ray.shutdown()

"""A calibration from start to end: every measurement in turn, then a device file and a table of operators beside it.

for progress in (run := Calibration(options)).run(): ...
run.write()
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

from penstock.calibrate.host import Host, fastest, fit, recorded
from penstock.calibrate.machine import Copies, copies, cpu_name, memory_bytes, peak_flop_per_s, products
from penstock.calibrate.operators import BLOCK_TOKENS, PASSES, OperatorBench
from penstock.calibrate.stream import StreamResult, run_stream
from penstock.catalog import model_shape, resolve_model
from penstock.catalog.device import Device, Figure, Link, Source
from penstock.catalog.hardware_load import check_device, render_device, user_directory
from penstock.deployment import Deployment
from penstock.errors import InvalidDeployment
from penstock.runtime.size import size_up
from penstock.twin.calibrated import Calibrated, OperatorTime, table_path, write_table
from penstock.twin.host import HostTime
from penstock.twin.layout import Layout, Precision
from penstock.twin.roofline import Roofline
from penstock.twin.step_graph import StepGraph
from penstock.twin.step_price import StepPrice

LONGEST: Final = 2048
"""Tokens of the longest sequence measured; longer ones are extrapolated."""
STREAM_ELEMENTS: Final = 20_000_000
"""Doubles per array: 160 MB, beyond any last cache but a server's largest."""
HOST_PARTS: Final = 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to calibrate."""

    name: str = "this-machine"
    """Of the device; its files get this name."""
    models: tuple[str, ...] = ("millrace",)
    """Whose operators are measured; the host's time is that of serving the first."""
    dtype: str = "float32"
    threads: int | None = None
    """None: all cores."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where it stands."""

    what: str
    done: int
    total: int
    """Of all stages together, in about equal parts of time."""


class Calibration:
    """One run. Raises InvalidDeployment before anything heavy: no such model, or a name that is no file name."""

    def __init__(self, options: Options) -> None:
        if not options.name or options.name != Path(options.name).name or options.name.startswith("."):
            raise InvalidDeployment(
                field="--out", value=options.name, why="the files of the device get this name",
                remedy="a plain name, such as this-machine",
            )  # fmt: skip
        self.options = options
        self.deployments = [
            Deployment.load(
                None,
                {"model.path": model, "model.dtype": options.dtype}
                | ({} if options.threads is None else {"hardware.threads": options.threads}),
            )
            for model in options.models
        ]
        for deployment in self.deployments:
            size_up(deployment)
        self.lines: list[OperatorTime] = []
        self.host: Host | None = None
        self.stream: StreamResult | None = None
        self.copies: Copies | None = None
        self.peaks: dict[str, float] = {}
        self.disturbed = 0.0
        """Share of the measured steps during which the machine was busy with something else."""
        self._total = 1

    def run(self) -> Iterator[Progress]:
        """Measure everything. Stops where the caller stops; `device` and `write` need all of it."""
        import torch

        from penstock.engine.loader import load_model
        from penstock.engine.ops.kernels import kernels_for

        if self.options.threads is not None:
            torch.set_num_threads(self.options.threads)
        dtype, done = self.options.dtype, 0
        benches = []
        for deployment in self.deployments:
            path = resolve_model(deployment.model.path)
            model = load_model(path, dtype=dtype, device="cpu")
            benches.append(OperatorBench(model, model_shape(str(path)), longest=LONGEST, dtype=dtype))
        points = PASSES * sum(len(bench.points()) for bench in benches)
        self._total = points + 21 + 2 + 6 * HOST_PARTS
        with torch.inference_mode():
            for deployment, bench in zip(self.deployments, benches, strict=True):
                for _ in bench.run():
                    done += 1
                    yield Progress(f"operators of {deployment.model.path}", done, self._total)
                self.lines += bench.lines()
            for number, line in enumerate(products(kernels_for(torch.device("cpu")), dtype)):
                self.lines.append(line)
                if number % 2:
                    done += 1
                    yield Progress("products of other shapes", done, self._total)
            self.peaks = {kind: peak_flop_per_s(kind) for kind in ("float32", "bfloat16")}
            self.copies = copies(benches[0].architecture, dtype, BLOCK_TOKENS)
            yield Progress("copies between pools", done := done + 1, self._total)
        self.stream = run_stream(STREAM_ELEMENTS, 5, self.options.threads)
        yield Progress("memory", done := done + 1, self._total)
        for part in recorded(self.deployments[0]):
            if isinstance(part, str):
                yield Progress(f"host: {part}", done := min(done + 6, self._total - 1), self._total)
                continue
            price = self._price(Roofline(self._device(HostTime())))
            steps = [step for attempts in part for step in fastest(attempts, price.seconds)]
            self.host = fit(steps, [price.seconds(load) for load, _ in steps])
        self.disturbed = sum(bench.disturbed for bench in benches) / max(1, sum(bench.steps for bench in benches))
        yield Progress("done", self._total, self._total)

    def device(self) -> Device:
        """What was measured, as a device of the catalogue."""
        assert self.host is not None, "device() follows run()"
        fitted = self.host
        host = HostTime(
            step_s=fitted.step_s, request_s=fitted.request_s, first_request_s=fitted.first_request_s,
            first_requests=fitted.first_requests, token_s=fitted.token_s,
        )  # fmt: skip
        found = self._device(host)
        check_device(found, found.name)
        return found

    def write(self) -> tuple[Path, Path]:
        """The device file and the table beside it, in the user's directory. Raises InvalidDeployment: cannot write."""
        found = self.device()
        path, table = user_directory() / f"{found.name}.yaml", table_path(found.name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # The table first: a device file is never without it.
            write_table(table, self.lines)
            path.write_text(render_device(found), encoding="utf-8")
        except OSError as error:
            raise InvalidDeployment(
                field="PENSTOCK_HARDWARE_DIR", value=str(path.parent), why=f"it cannot be written: {error.strerror}",
                remedy="a directory of yours",
            ) from None  # fmt: skip
        return path, table

    def _price(self, fallback: Roofline) -> StepPrice:
        dtype = self.options.dtype
        shape = model_shape(str(resolve_model(self.deployments[0].model.path)))
        precision = Precision(weights=dtype, experts=dtype, activations=dtype, kv=dtype, head=dtype)
        graph = StepGraph(shape, Layout(), precision)
        return StepPrice(graph, Calibrated(self.lines, fallback), HostTime())

    def _device(self, host: HostTime) -> Device:
        assert self.stream is not None
        assert self.copies is not None
        import torch

        threads = torch.get_num_threads()

        def figure(value: float, note: str = "") -> Figure:
            return Figure(float(f"{value:.6g}"), "measured", "run", note)

        smallest = min((line.seconds for line in self.lines if line.seconds > 0), default=0.0)
        fitted = "" if self.host is None else (
            f"fitted to {self.host.steps} steps of the server; median error of a step "
            f"{100 * self.host.median_error:.1f} %, of their sum {100 * self.host.bias:+.1f} %"
        )  # fmt: skip
        return Device(
            name=self.options.name, title=f"{cpu_name()}, {threads} threads", kind="cpu",
            matrix_flop_per_s={
                dtype: figure(value, "the fastest of some large products through torch")
                for dtype, value in self.peaks.items()
            },
            memory_bytes=figure(memory_bytes()),
            memory_bytes_per_s=figure(self.stream.bytes_per_s, "STREAM, the best of its four kernels"),
            host_link=Link(
                name="memory", bytes_per_s=figure(self.copies.bytes_per_s, "blocks between pools"),
                latency_s=figure(self.copies.latency_s),
            ),
            kernel_s=figure(smallest, "the shortest operator measured"),
            host={
                "step_s": figure(host.step_s, fitted), "request_s": figure(host.request_s),
                "first_request_s": figure(host.first_request_s), "first_requests": figure(host.first_requests),
                "token_s": figure(host.token_s),
            },
            sources={
                "run": Source(
                    title=f"penstock calibrate, {time.strftime('%Y-%m-%d %H:%M')}",
                    note=f"Penstock {version('penstock')}, torch {version('torch')}, {threads} threads, "
                    f"{self.options.dtype}, models {', '.join(self.options.models)}; load average "
                    f"{os.getloadavg()[0]:.1f}, disturbed in {100 * self.disturbed:.0f} % of the steps",
                )
            },
        )  # fmt: skip

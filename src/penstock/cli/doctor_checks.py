"""What `penstock doctor` looks at, one function a subject. Each yields what it found; nothing is changed.

A finding is `ok`, `missing` (something needed: the verdict is bad), `warning` (works, less well) or `absent` (an option
that is not installed, with what it would give).
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Final, Literal

from penstock.deployment import Deployment, is_loopback
from penstock.errors import InvalidDeployment, PenstockError
from penstock.units import format_bytes

Status = Literal["ok", "missing", "warning", "absent"]

MANY_FILES: Final = 4096
"""Descriptors: a connection each, and some of our own."""
EXTRAS: Final = {
    "measured": "prices of GPUs from operator databases, for simulate",
    "parquet": "ServeGen pools and operator profiles in Parquet",
    "ray": "sweeps on a cluster",
    "otel": "OpenTelemetry spans (server.trace_endpoint)",
    "cuda": "Triton kernels, where torch for CUDA brings none (docs/gpu.md)",
    "dev": "tests, linters, the type checker that also compiles the hot modules",
}
"""Extra to what it gives; one that is not listed here is shown by its name alone."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    subject: str
    name: str
    status: Status
    value: str
    remedy: str = ""


def findings(deployment: Deployment) -> Iterator[Finding]:
    """All of them, cheap ones first: the last loads torch and runs the model."""
    for subject in (_versions, _machine, _limits, _port, _access, _extras, _compiled, _model):
        yield from subject(deployment)


def _versions(_: Deployment) -> Iterator[Finding]:
    yield Finding("versions", "penstock", "ok", version("penstock"))
    yield Finding("versions", "python", "ok", platform.python_version())
    for wanted in requires("penstock") or ():
        requirement, _sep, marker = wanted.partition(";")
        if "extra" in marker or ("win32" in marker and os.name == "nt"):
            continue
        name, installed = _named(requirement)
        if installed is None:
            yield Finding("versions", name, "missing", "not installed", f"pip install '{requirement.strip()}'")
        else:
            yield Finding("versions", name, "ok", installed)


def _machine(_: Deployment) -> Iterator[Finding]:
    from penstock.runtime.available import available_bytes
    from penstock.runtime.cores import own_cores, quota

    yield Finding("machine", "system", "ok", platform.platform())
    yield Finding("machine", "processor", "ok", _processor())
    cores, share = own_cores(), quota()
    shown = f"{cores}" if share is None or share >= cores else f"{cores}, of which the container may use {share:g}"
    yield Finding("machine", "cores", "ok", shown)
    free = available_bytes()
    yield Finding("machine", "memory available", "ok", "unknown" if free is None else format_bytes(free))


def _limits(_: Deployment) -> Iterator[Finding]:
    if os.name != "posix":
        return
    from penstock.cli.descriptors import usable

    most = usable()
    status: Status = "ok" if most >= MANY_FILES else "warning"
    remedy = "" if status == "ok" else f"ulimit -Hn {MANY_FILES}, or LimitNOFILE in the unit: a connection takes one"
    yield Finding("limits", "open files", status, f"{most}, which a server takes", remedy)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    there = next(path for path in (cache, *cache.parents) if path.exists())
    writable = os.access(there, os.W_OK)
    yield Finding(
        "limits", "cache directory", "ok" if writable else "warning", "writable" if writable else "not writable",
        "" if writable else "set XDG_CACHE_HOME to a directory of your own: kernels are compiled anew at each start",
    )  # fmt: skip


def _port(deployment: Deployment) -> Iterator[Finding]:
    from penstock.serve.server import not_here

    host, port = deployment.server.host, deployment.server.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except (OSError, UnicodeError) as error:
            if not_here(error):
                yield Finding(
                    "network", "address", "missing", f"{host} is no address of this machine",
                    "server.host: 127.0.0.1, another of its addresses, or 0.0.0.0 for all of them",
                )  # fmt: skip
                return
            why = getattr(error, "strerror", None) or error
            yield Finding(
                "network", f"port {port}", "warning", f"cannot be had on {host}: {why}",
                "something else listens there (perhaps a server of ours); `penstock serve --server.port` takes another",
            )  # fmt: skip
            return
    yield Finding("network", f"port {port}", "ok", f"free on {host}")


def _access(deployment: Deployment) -> Iterator[Finding]:
    """Who may come in, and whether what says so can be read. Keys are counted and not shown."""
    from penstock.serve.auth import keys_of
    from penstock.serve.tls import context_of

    server = deployment.server
    try:
        known = len(keys_of(deployment).names())
        if known:
            yield Finding("access", "keys", "ok", f"{known} known")
        elif server.locked:
            yield Finding("access", "keys", "warning", "none known: nobody may come in", "penstock key new")
        elif is_loopback(server.host):
            yield Finding("access", "keys", "ok", "none asked for: open to every program on this machine")
        else:
            yield Finding("access", "keys", "warning", "none asked for: open to everyone", "penstock key new")
        if server.tls_certificate is not None:
            context_of(server.tls_certificate, server.tls_key)
            yield Finding("access", "certificate", "ok", "it and its key belong together")
    except InvalidDeployment as error:
        yield Finding("access", error.field, "missing", f"{error.value}: {error.why}", error.remedy)


def _extras(_: Deployment) -> Iterator[Finding]:
    wanted: dict[str, list[str]] = {}
    for line in requires("penstock") or ():
        requirement, _sep, marker = line.partition(";")
        if found := re.search(r"extra\s*==\s*['\"](\w+)", marker):
            wanted.setdefault(found.group(1), []).append(requirement)
    for extra, requirements in wanted.items():
        named = [_named(requirement) for requirement in requirements]
        missing = [name for name, installed in named if installed is None]
        gives = EXTRAS.get(extra, "")
        if missing:
            yield Finding(
                "extras", extra, "absent", f"without it: no {gives}" if gives else "not installed",
                f"pip install 'penstock[{extra}]' ({', '.join(missing)})",
            )  # fmt: skip
        else:
            yield Finding("extras", extra, "ok", gives or "installed")


def _compiled(_: Deployment) -> Iterator[Finding]:
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        yield Finding(
            "compiled", "C compiler", "warning", "none", "install gcc or clang: without, operators of torch are slower"
        )
    else:
        yield Finding("compiled", "C compiler", "ok", Path(compiler).name)
    import penstock.control.replica  # noqa: F401 - what in_use looks at
    from penstock.compiled import in_use

    if in_use():
        yield Finding("compiled", "hot modules", "ok", "compiled")
    else:
        yield Finding(
            "compiled", "hot modules", "absent", "plain Python: a simulation takes three times as long",
            "python -m penstock.compiled.build",
        )  # fmt: skip


def _model(deployment: Deployment) -> Iterator[Finding]:
    """The whole path: torch, kernels, checkpoint, one token."""
    from penstock.control.request import Request, Sampling

    phases: dict[str, str] = {}
    try:
        import torch

        from penstock.cli.hosting import text_side_of
        from penstock.runtime.build import build
        from penstock.runtime.offline import run

        devices = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        yield Finding("devices", "cuda", "ok" if devices else "absent", ", ".join(devices) or "none: the CPU computes")
        yield Finding("devices", "cpu threads", "ok", str(torch.get_num_threads()))
        text = text_side_of(deployment)
        template = "a chat template" if text.template is not None else "no chat template: completions only"
        yield Finding("model", "tokenizer", "ok", f"{text.tokenizer.vocab_size:,} tokens, {template}")
        built = build(deployment, lambda name, seconds, detail: phases.__setitem__(name, f"{detail} ({seconds:.2f} s)"))
        try:
            sampling = Sampling(temperature=0.0)
            (result,) = run(built, [Request(id="doctor", prompt=(1, 2, 3), max_tokens=1, sampling=sampling)])
        finally:
            built.executor.close()
    except PenstockError as error:
        yield Finding("model", deployment.model.path, "missing", " ".join(str(error).split()), "see the cause")
        return
    except Exception as error:  # noqa: BLE001 - whatever keeps a token from coming is what a bug report asks for
        yield Finding(
            "model", deployment.model.path, "missing", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            "report it with this output",
        )  # fmt: skip
        return
    for name, detail in phases.items():
        native = name != "compile" or "Native" in detail
        remedy = "" if native else "install a C compiler: these operators are slower"
        yield Finding("model", name, "ok" if native else "warning", detail, remedy)
    found = f"{built.info.checkpoint}, answers carry {built.info.fingerprint}"
    yield Finding("model", "checkpoint", "ok", found)
    if result.error is not None or len(result.tokens) != 1:
        yield Finding("model", "one token", "missing", result.error or "none came", "report it with this output")
    else:
        yield Finding("model", "one token", "ok", f"{built.info.name} answered with token {result.tokens[0]}")


def _named(requirement: str) -> tuple[str, str | None]:
    """Name and installed version of a requirement such as 'msgspec>=0.19'."""
    name = re.split(r"[\s<>=!~\[(;]", requirement.strip(), maxsplit=1)[0]
    try:
        return name, version(name)
    except PackageNotFoundError:
        return name, None


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()

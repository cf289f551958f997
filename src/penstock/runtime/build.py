"""From a deployment to what a worker runs: engine, replica, and the facts about them. Each phase is timed and told.

Whether the model fits is judged from config.json and the headers of the weights, before anything heavy is loaded.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Final

from penstock.catalog import resolve_model
from penstock.control.policy import build_replica
from penstock.control.replica import Replica
from penstock.control.request import Request, Sampling
from penstock.deployment import Deployment
from penstock.errors import InvalidDeployment
from penstock.runtime.executor import Executor
from penstock.runtime.facts import ModelInfo
from penstock.runtime.local import Loop
from penstock.units import format_bytes

if TYPE_CHECKING:
    from penstock.engine.loader import LoadedModel

OnPhase = Callable[[str, float, str], None]

RUNTIME_BYTES: Final = 600 * 2**20
"""What the interpreter, torch and a step's activations take beside weights and KV: measured for small models."""


@dataclass(frozen=True, slots=True)
class Built:
    """What runtime/local.py drives."""

    replica: Replica
    executor: Executor
    info: ModelInfo
    plan_ahead: bool


@dataclass(frozen=True, slots=True)
class Size:
    """What the model needs and how the KV memory is cut, all known without loading anything."""

    path: Path
    architecture: str
    parameters: int
    weight_bytes: int
    vocab_size: int
    max_sequence_tokens: int
    blocks: int
    host_blocks: int
    kv_bytes_per_token: int


def build(deployment: Deployment, on_phase: OnPhase) -> Built:
    """Load the engine and build its replica.

    Raises:
        InvalidDeployment: the model is not there, does not fit, or a setting contradicts it.
        UnsupportedModel: the checkpoint cannot be run by this engine.
    """
    with _phase("resolve", on_phase) as say:
        size = size_up(deployment)
        say(f"{size.path.name}: {size.architecture}, {size.parameters / 1e6:,.1f}M parameters")
    with _phase("import torch", on_phase) as say:
        import torch

        from penstock.engine.engine import Engine
        from penstock.engine.loader import load_model
        from penstock.engine.ops.kernels import kernels_for

        threads = deployment.hardware.threads
        if threads is not None:
            torch.set_num_threads(threads)
        _require_device(deployment.hardware.device, torch.cuda.is_available())
        say(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {deployment.hardware.device}")
    with _phase("load weights", on_phase) as say:
        model = load_model(size.path, dtype=deployment.model.dtype, device=deployment.hardware.device)
        say(f"{format_bytes(size.weight_bytes)} as {deployment.model.dtype}")
    with _phase("compile", on_phase) as say:
        kernels = kernels_for(model.device)
        say(type(kernels).__name__)
    with _phase("size KV", on_phase) as say:
        memory, policy = deployment.memory, deployment.policy
        engine = Engine(
            model, blocks=size.blocks, block_tokens=memory.block_tokens, host_blocks=size.host_blocks,
            max_seqs=policy.max_seqs, kernels=kernels,
        )  # fmt: skip
        replica = _replica(deployment, size)
        say(
            f"{size.blocks} blocks of {memory.block_tokens} tokens, {format_bytes(memory.kv_bytes)}"
            + (f"; host {size.host_blocks} blocks" if size.host_blocks else "")
        )
    with _phase("warm up", on_phase) as say:
        say(f"a decode step of one sequence takes {_warm_up(model, deployment) * 1e3:.2f} ms")
    info = ModelInfo(
        name=deployment.model.name or size.path.name, path=str(size.path), architecture=size.architecture,
        parameters=size.parameters, dtype=deployment.model.dtype, vocab_size=size.vocab_size,
        max_sequence_tokens=size.max_sequence_tokens, kv_capacity_tokens=size.blocks * memory.block_tokens,
        block_tokens=memory.block_tokens, blocks=size.blocks, max_seqs=policy.max_seqs,
        fingerprint=fingerprint(size.path, deployment.model.dtype),
    )  # fmt: skip
    return Built(replica, engine, info, policy.plan_ahead)


def size_up(deployment: Deployment) -> Size:
    """Find the model and cut the KV memory into blocks. Loads nothing. Raises InvalidDeployment, UnsupportedModel."""
    from penstock.engine.checkpoint import model_footprint

    path = resolve_model(deployment.model.path)
    footprint = model_footprint(path, deployment.model.dtype)
    memory = deployment.memory
    block_bytes = footprint.kv_bytes_per_token * memory.block_tokens
    blocks = memory.kv_bytes // block_bytes
    wanted = deployment.model.max_sequence_tokens
    if wanted is not None and wanted > footprint.max_sequence_tokens:
        raise InvalidDeployment(
            field="model.max_sequence_tokens", value=wanted,
            why=f"the model was trained for {footprint.max_sequence_tokens} tokens",
            remedy=f"{footprint.max_sequence_tokens} or less, or leave the key out",
        )  # fmt: skip
    if wanted is not None and wanted > blocks * memory.block_tokens:
        raise InvalidDeployment(
            field="model.max_sequence_tokens", value=wanted,
            why=f"one sequence needs {format_bytes(wanted * footprint.kv_bytes_per_token)} of KV "
            f"({footprint.kv_bytes_per_token} bytes per token); memory.kv_bytes is {format_bytes(memory.kv_bytes)}",
            remedy=f"{blocks * memory.block_tokens} or less, or "
            f"memory.kv_bytes: {wanted * footprint.kv_bytes_per_token}",
        )  # fmt: skip
    if blocks < 1:
        raise InvalidDeployment(
            field="memory.kv_bytes", value=memory.kv_bytes,
            why=f"not one KV block fits: {memory.block_tokens} tokens need {block_bytes} bytes",
            remedy=f"{footprint.kv_bytes_per_token * footprint.max_sequence_tokens} bytes hold one full sequence",
        )  # fmt: skip
    if deployment.hardware.device == "cpu":
        _require_fit(deployment, footprint.weight_bytes, available_bytes())
    return Size(
        path=path, architecture=footprint.architecture, parameters=footprint.parameters,
        weight_bytes=footprint.weight_bytes, vocab_size=footprint.vocab_size,
        max_sequence_tokens=min(wanted or footprint.max_sequence_tokens, blocks * memory.block_tokens), blocks=blocks,
        host_blocks=memory.host_bytes // block_bytes, kv_bytes_per_token=footprint.kv_bytes_per_token,
    )  # fmt: skip


def available_bytes() -> int | None:
    """Memory that can be had without swapping: of the machine or of the container, whichever is less. None: unknown."""
    found = []
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        if limit != "max":
            used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
            found.append(int(limit) - used)
    except (OSError, ValueError):
        return min(found, default=None)  # another system, or no such container: what was found is what is known
    return min(found, default=None)


def fingerprint(path: Path, dtype: str) -> str:
    """'fp_' and 12 hex digits: of config.json, the first MiB and the size of each weights file, the precision and
    Penstock's version. Any training changes it; reading all of a large checkpoint would delay the start."""
    digest = hashlib.sha256(f"{_version()} {dtype}".encode())
    for file in sorted([path / "config.json", *path.glob("*.safetensors")]):
        with file.open("rb") as stream:
            digest.update(f"{file.name} {file.stat().st_size} ".encode())
            digest.update(stream.read(2**20))
    return "fp_" + digest.hexdigest()[:12]


def _replica(deployment: Deployment, size: Size) -> Replica:
    memory, policy = deployment.memory, deployment.policy
    return build_replica(
        blocks=size.blocks, block_tokens=memory.block_tokens, max_sequence_tokens=size.max_sequence_tokens,
        policy=policy.name, order=policy.order, compose=policy.compose, evict=policy.evict, memory=memory.kind,
        token_budget=policy.token_budget, max_seqs=policy.max_seqs, ageing_s=policy.ageing_s,
        watermark=memory.watermark, host_blocks=size.host_blocks,
    )  # fmt: skip


def _require_fit(deployment: Deployment, weight_bytes: int, available: int | None) -> None:
    memory = deployment.memory
    needed = weight_bytes + memory.kv_bytes + memory.host_bytes + RUNTIME_BYTES
    if available is None or needed <= available:
        return
    left = available - weight_bytes - memory.host_bytes - RUNTIME_BYTES
    remedy = (
        f"memory.kv_bytes: {left // 2**20}MiB or less"
        if left >= 2**20
        else "a smaller model, model.dtype: bfloat16, or a machine with more memory"
    )
    raise InvalidDeployment(
        field="memory.kv_bytes", value=memory.kv_bytes,
        why=f"weights {format_bytes(weight_bytes)}, KV {format_bytes(memory.kv_bytes + memory.host_bytes)} and "
        f"{format_bytes(RUNTIME_BYTES)} for the runtime need {format_bytes(needed)}; {format_bytes(available)} are "
        "available", remedy=remedy,
    )  # fmt: skip


def _require_device(device: str, cuda: bool) -> None:
    if device == "cuda" and not cuda:
        raise InvalidDeployment(
            field="hardware.device", value=device, why="torch finds no CUDA device here", remedy="hardware.device: cpu"
        )


def _warm_up(model: LoadedModel, deployment: Deployment) -> float:
    """Run one small request through an engine and a replica of its own, so that the first client does not pay for
    thread pools and first calls, and nothing of it shows in the statistics. Returns the seconds of its last step."""
    from penstock.engine.engine import Engine

    prompt_tokens, output_tokens, block_tokens = 16, 4, deployment.memory.block_tokens
    blocks = (prompt_tokens + output_tokens) // block_tokens + 2
    engine = Engine(model, blocks=blocks, block_tokens=block_tokens, max_seqs=1)
    replica = build_replica(blocks=blocks, block_tokens=block_tokens, max_sequence_tokens=blocks * block_tokens)
    loop = Loop(replica, engine, clock=time.monotonic, plan_ahead=deployment.policy.plan_ahead)
    sampling = Sampling(temperature=1.0, top_p=0.9, seed=0, logprobs=1)
    loop.submit(Request(id="warm-up", prompt=(0,) * prompt_tokens, max_tokens=output_tokens, sampling=sampling))
    last = [turn.result.seconds for turn in loop.run() if turn.step.tokens][-1]
    engine.close()
    return last


def _version() -> str:
    try:
        return version("penstock")
    except PackageNotFoundError:
        return "source tree"


@contextmanager
def _phase(name: str, on_phase: OnPhase) -> Iterator[Callable[[str], None]]:
    details: list[str] = []
    started = time.perf_counter()
    yield details.append
    on_phase(name, time.perf_counter() - started, "; ".join(details))

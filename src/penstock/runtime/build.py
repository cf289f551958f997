"""From a deployment to what a worker runs: engine, replica, and the facts about them. Each phase is timed and told.

How large it will be is judged first, by size.py, before anything heavy is loaded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.control.policy import build_replica
from penstock.control.replica import Replica
from penstock.control.request import Request, Sampling
from penstock.deployment import Deployment, Model
from penstock.errors import InvalidDeployment, InvalidRequest
from penstock.runtime.executor import Executor
from penstock.runtime.facts import ModelInfo, OnPhase
from penstock.runtime.fingerprint import fingerprint, hash_of_checkpoint
from penstock.runtime.importing import uncollected
from penstock.runtime.local import Loop
from penstock.runtime.read_ahead import read_ahead
from penstock.runtime.reading import OnRead, seldom
from penstock.runtime.size import require_device_fit, size_up
from penstock.runtime.worker_adapters import AdapterHost
from penstock.units import format_bytes

if TYPE_CHECKING:
    from penstock.engine.engine import Engine
    from penstock.engine.loader import LoadedModel
    from penstock.engine.pooling import Pooling

__all__ = ["Built", "OnPhase", "build"]


@dataclass(frozen=True, slots=True)
class Built:
    """What runtime/local.py drives."""

    replica: Replica
    executor: Executor
    info: ModelInfo
    plan_ahead: bool
    host_blocks: int = 0
    prepare: Callable[[Request], None] | None = None
    """Called in a thread of its own for a request with a grammar, before it is submitted. Raises InvalidRequest."""
    adapters: AdapterHost | None = None
    """Where adapters are loaded; None: nowhere."""
    recompute_beyond: int | None = None
    """Tokens beyond which a sequence is computed anew (legs.py); None: none is."""


def build(deployment: Deployment, on_phase: OnPhase, on_read: OnRead | None = None, *, grammars: bool = True) -> Built:
    """Load the engine and build its replica.

    Args:
        on_read: told now and then how far the weights are read, if that takes long.
        grammars: read what they need of the tokenizer now, rather than when the first one comes.

    Raises:
        InvalidDeployment: the model is not there, does not fit, or a setting contradicts it.
        UnsupportedModel: the checkpoint cannot be run by this engine.
    """
    with _phase("resolve", on_phase) as say:
        size = size_up(deployment)
        say(f"{size.path.name}: {size.architecture}, {size.parameters / 1e6:,.1f}M parameters")
        read_ahead(_weight_files(size.path))
    with _phase("import torch", on_phase) as say:
        with uncollected():
            import torch

            from penstock.engine.device_engine import DeviceEngine, engine_for
            from penstock.engine.loader import load_model
            from penstock.engine.ops.kernels import kernels_for
            from penstock.engine.process_memory import settle

        threads = deployment.hardware.threads
        if threads is not None:
            torch.set_num_threads(threads)
        _require_device(deployment.hardware.device, torch.cuda.is_available())
        if deployment.hardware.device == "cuda":
            require_device_fit(deployment, size, torch.cuda.mem_get_info()[0])
        say(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {deployment.hardware.device}")
    with _phase("compile", on_phase) as say:  # first, as weights are packed by them
        kernels = kernels_for(torch.device(deployment.hardware.device))
        say(type(kernels).__name__)
    with _phase("load weights", on_phase) as say:
        model = load_model(
            size.path, dtype=deployment.model.served_dtype, device=deployment.hardware.device,
            on_read=None if on_read is None else seldom(on_read),
        )  # fmt: skip
        say(f"{format_bytes(size.weight_bytes)} as {deployment.model.served_dtype}")
    with _phase("size KV", on_phase) as say:
        memory, policy = deployment.memory, deployment.policy
        pooling = _pooling(size.path, deployment.model, head=model.architecture.head)
        engine = engine_for(deployment.hardware.device)(
            model, blocks=size.blocks, block_tokens=memory.block_tokens, host_blocks=size.host_blocks,
            max_seqs=policy.max_seqs, kernels=kernels, tokenizer_path=size.path,
            pooling=pooling, max_adapters=deployment.model.adapter_room, max_rank=deployment.model.max_rank,
        )  # fmt: skip
        replica = replica_for(
            deployment, blocks=size.blocks, max_sequence_tokens=size.max_sequence_tokens, host_blocks=size.host_blocks
        )
        say(
            f"{size.blocks} blocks of {memory.block_tokens} tokens, {format_bytes(memory.pool_bytes)}"
            + (f"; host {size.host_blocks} blocks" if size.host_blocks else "")
        )
    if grammars:
        _read_vocabulary(engine, on_phase, size.vocab_size)
    with _phase("warm up", on_phase) as say:
        say(f"a decode step of one sequence takes {_warm_up(model, deployment, pooling) * 1e3:.2f} ms")
        if isinstance(engine, DeviceEngine):
            say(f"{engine.warm_up()} graphs of decode steps")
        settle()
    checkpoint = hash_of_checkpoint(size.path)
    info = ModelInfo(
        name=deployment.model.name or size.path.name, path=str(size.path), architecture=size.architecture,
        parameters=size.parameters, dtype=deployment.model.served_dtype, vocab_size=size.vocab_size,
        max_sequence_tokens=size.max_sequence_tokens, kv_capacity_tokens=size.blocks * memory.block_tokens,
        block_tokens=memory.block_tokens, blocks=size.blocks, max_seqs=policy.max_seqs,
        embedding_width=model.architecture.hidden if pooling is not None else 0,
        checkpoint=checkpoint,
        fingerprint=fingerprint(checkpoint, dtype=deployment.model.served_dtype, kernels=kernels.name),
    )  # fmt: skip
    return Built(
        replica, engine, info, policy.plan_ahead, size.host_blocks, engine.guides.prepare,
        adapters=engine if deployment.model.adapter_room else None, recompute_beyond=engine.recompute_beyond,
    )  # fmt: skip


def _weight_files(path: Path) -> list[Path]:
    from penstock.engine.checkpoint import weight_files

    return weight_files(path)


def _read_vocabulary(engine: Engine, on_phase: OnPhase, vocab_size: int) -> None:
    """Not with the first grammar: for a large vocabulary it holds the interpreter for a second."""
    from penstock.engine.process_memory import loading

    with _phase("read vocabulary", on_phase) as say:
        try:
            with loading():
                engine.guides.load()
            say(f"for grammars: {vocab_size} tokens")
        except InvalidRequest as error:
            say(f"no grammars: {error.why}")


def replica_for(deployment: Deployment, *, blocks: int, max_sequence_tokens: int, host_blocks: int = 0) -> Replica:
    """The control plane of a deployment whose KV memory is cut into so many blocks, whatever executes its steps."""
    memory, policy = deployment.memory, deployment.policy
    return build_replica(
        blocks=blocks, block_tokens=memory.block_tokens, max_sequence_tokens=max_sequence_tokens,
        policy=policy.name, order=policy.order, compose=policy.compose, evict=policy.evict, memory=memory.kind,
        evict_idle=memory.evict_idle, token_budget=policy.token_budget, max_seqs=policy.max_seqs,
        ageing_s=policy.ageing_s, watermark=memory.watermark, host_blocks=host_blocks,
    )  # fmt: skip


def _require_device(device: str, cuda: bool) -> None:
    if device == "cuda" and not cuda:
        raise InvalidDeployment(
            field="hardware.device", value=device, why="torch finds no CUDA device here", remedy="hardware.device: cpu"
        )


def _pooling(path: Path, model: Model, *, head: bool) -> Pooling | None:
    """How embeddings are made, by the deployment or the checkpoint's own files. Raises InvalidDeployment."""
    from penstock.engine.pooling import read_pooling

    pooling = read_pooling(path, kind=model.pooling, normalize=model.normalize)
    if pooling is None and (not head or model.normalize is not None):
        raise InvalidDeployment(
            field="model.pooling", value=None, why="nothing says how embeddings are made (no 1_Pooling/config.json)"
            + ("" if head else ", and the checkpoint has no head to generate with"),
            remedy="model.pooling: last, or mean",
        )  # fmt: skip
    return pooling


def _warm_up(model: LoadedModel, deployment: Deployment, pooling: Pooling | None) -> float:
    """Run one small request through an engine and a replica of its own, so that the first client does not pay for
    thread pools and first calls, and nothing of it shows in the statistics. Returns the seconds of its last step."""
    from penstock.engine.engine import Engine

    prompt_tokens, output_tokens, block_tokens = 16, 4, deployment.memory.block_tokens
    blocks = (prompt_tokens + output_tokens) // block_tokens + 2
    engine = Engine(model, blocks=blocks, block_tokens=block_tokens, max_seqs=1, pooling=pooling)
    replica = build_replica(blocks=blocks, block_tokens=block_tokens, max_sequence_tokens=blocks * block_tokens)
    loop = Loop(replica, engine, clock=time.monotonic, plan_ahead=deployment.policy.plan_ahead)
    sampling = Sampling(temperature=1.0, top_p=0.9, seed=0, logprobs=1)
    if not model.architecture.head:
        sampling, output_tokens = Sampling(embed=True), 1
    loop.submit(Request(id="warm-up", prompt=(0,) * prompt_tokens, max_tokens=output_tokens, sampling=sampling))
    last = [turn.result.seconds for turn in loop.run() if turn.step.tokens][-1]
    engine.close()
    return last


@contextmanager
def _phase(name: str, on_phase: OnPhase) -> Iterator[Callable[[str], None]]:
    details: list[str] = []
    started = time.perf_counter()
    yield details.append
    on_phase(name, time.perf_counter() - started, "; ".join(details))

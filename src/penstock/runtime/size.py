"""Whether a model fits, and how the KV memory is cut: from config.json and the headers of the weights alone.

Nothing heavy is imported or read, so a deployment that cannot work is refused within milliseconds, with the numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from penstock.catalog import resolve_model
from penstock.deployment import Deployment
from penstock.errors import InvalidDeployment
from penstock.runtime.available import available_bytes
from penstock.runtime.servable import require_servable
from penstock.units import format_bytes

if TYPE_CHECKING:
    from penstock.engine.checkpoint import Footprint

RUNTIME_BYTES: Final = 600 * 2**20
"""What the interpreter, torch and a step's activations take beside weights and KV: measured for small models."""
DEVICE_BYTES: Final = 2**30
"""What a step's activations, graphs and the libraries' work space take on a GPU beside what is taken: assumed."""


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
    adapter_bytes: int


def size_up(deployment: Deployment) -> Size:
    """Find the model and cut the KV memory into blocks. Loads nothing. Raises InvalidDeployment, UnsupportedModel."""
    from penstock.engine.checkpoint import dtype_bytes, model_footprint
    from penstock.engine.lora.adapter import adapter_elements_bound

    require_servable(deployment)
    path = resolve_model(deployment.model.path)
    footprint = model_footprint(path, deployment.model.served_dtype)
    memory = deployment.memory
    block_bytes = footprint.kv_bytes_per_token * memory.block_tokens
    blocks = memory.pool_bytes // block_bytes
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
            f"({footprint.kv_bytes_per_token} bytes per token); memory.kv_bytes is {format_bytes(memory.pool_bytes)}",
            remedy=f"{blocks * memory.block_tokens} or less, or "
            f"memory.kv_bytes: {wanted * footprint.kv_bytes_per_token}",
        )  # fmt: skip
    if blocks < 1:
        raise InvalidDeployment(
            field="memory.kv_bytes", value=memory.pool_bytes,
            why=f"not one KV block fits: {memory.block_tokens} tokens need {block_bytes} bytes",
            remedy=f"{footprint.kv_bytes_per_token * footprint.max_sequence_tokens} bytes hold one full sequence",
        )  # fmt: skip
    model = deployment.model
    adapter_bytes = 0
    if model.adapter_room:
        elements = adapter_elements_bound(
            path, model.adapters.values(), room=model.adapter_room, max_rank=model.max_rank,
            more=model.adapter_directory is not None,
        )  # fmt: skip
        adapter_bytes = elements * dtype_bytes(model.served_dtype)
    if deployment.hardware.device == "cpu":
        _require_fit(
            deployment, footprint, adapter_bytes, available_bytes(), host_bytes=memory.host_bytes, runtime=RUNTIME_BYTES
        )
    return Size(
        path=path, architecture=footprint.architecture, parameters=footprint.parameters,
        weight_bytes=footprint.weight_bytes, vocab_size=footprint.vocab_size,
        max_sequence_tokens=min(wanted or footprint.max_sequence_tokens, blocks * memory.block_tokens), blocks=blocks,
        host_blocks=memory.host_bytes // block_bytes, kv_bytes_per_token=footprint.kv_bytes_per_token,
        adapter_bytes=adapter_bytes,
    )  # fmt: skip


def require_device_fit(deployment: Deployment, size: Size, free: int) -> None:
    """Before weights are loaded onto a GPU with so many free bytes. Raises InvalidDeployment with the numbers."""
    from penstock.engine.checkpoint import model_footprint

    footprint = model_footprint(size.path, deployment.model.served_dtype)
    _require_fit(deployment, footprint, size.adapter_bytes, free, host_bytes=0, runtime=DEVICE_BYTES)


def _require_fit(
    deployment: Deployment, footprint: Footprint, adapter_bytes: int, available: int | None, *, host_bytes: int,
    runtime: int,
) -> None:  # fmt: skip
    """`host_bytes`: of swapped blocks, where they lie in the same memory."""
    memory, weight_bytes = deployment.memory, footprint.weight_bytes
    needed = weight_bytes + adapter_bytes + memory.pool_bytes + host_bytes + runtime
    if available is None or needed <= available:
        return
    left = available - (needed - memory.pool_bytes)
    raise InvalidDeployment(
        field="memory.kv_bytes", value=memory.pool_bytes,
        why=f"weights {format_bytes(weight_bytes)}, "
        + (f"adapters {format_bytes(adapter_bytes)}, " if adapter_bytes else "")
        + f"KV {format_bytes(memory.pool_bytes + host_bytes)} and "
        f"{format_bytes(runtime)} for the runtime need {format_bytes(needed)}; {format_bytes(available)} are "
        "available", remedy=_what_fits(deployment, footprint, left, host_bytes),
    )  # fmt: skip


def _saved_without_loss(deployment: Deployment, footprint: Footprint) -> int:
    from penstock.engine.checkpoint import model_footprint

    path = resolve_model(deployment.model.path)
    return footprint.weight_bytes - model_footprint(path, "float32_compressed").weight_bytes


def _what_fits(deployment: Deployment, footprint: Footprint, left: int, host_bytes: int) -> str:
    """`left`: bytes for KV blocks; negative if not even the rest fits."""
    block_tokens = deployment.memory.block_tokens
    kv_bytes = left // 2**20 * 2**20
    tokens = kv_bytes // (footprint.kv_bytes_per_token * block_tokens) * block_tokens
    if tokens > 0:
        context = min(deployment.model.max_sequence_tokens or footprint.max_sequence_tokens, tokens)
        return (
            f"memory.kv_bytes: {kv_bytes // 2**20}MiB or less, which holds a context of {context:,} tokens, "
            f"{tokens // context} times at once"
        )
    if host_bytes and host_bytes + left > 0:
        return "a smaller memory.host_bytes"
    served = deployment.model.served_dtype
    halved = served == "float32" and footprint.weight_bytes // 2 + left > 0
    saved = {
        "float32": footprint.weight_bytes * 3 // 4, "float32_compressed": footprint.weight_bytes // 2,
        "bfloat16": footprint.weight_bytes // 2,
    }.get(served, 0)  # fmt: skip
    on_cpu = deployment.hardware.device == "cpu"
    quartered = on_cpu and saved + left > 0
    compressed = on_cpu and served == "float32" and _saved_without_loss(deployment, footprint) + left > 0
    return (
        ("model.dtype: float32_compressed, which changes no result, or " if compressed else "")
        + ("model.dtype: bfloat16, which halves the weights, or " if halved else "")
        + ("model.dtype: int8 or int4, which take a quarter of float32 and less, or " if quartered else "")
        + "a smaller model, or a machine with more memory"
    )  # fmt: skip

"""Reads one adapter as PEFT writes it: adapter_config.json and adapter_model.safetensors in a directory.

What PEFT can train and this engine cannot add to a product (biases, whole modules, DoRA's magnitudes, embeddings,
experts) is refused by name: an adapter that is loaded does all it was trained to do.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from penstock.engine.architecture import Architecture, read_architecture
from penstock.engine.checkpoint import Entry, entries_of
from penstock.engine.lora.targets import Target, adapter_elements, targets
from penstock.errors import UnsupportedAdapter, UnsupportedModel

if TYPE_CHECKING:
    import torch

    from penstock.engine.lora.step import Weights

WEIGHTS: Final = "adapter_model.safetensors"
_PREFIX: Final = "base_model.model."
_SIDES: Final = {".lora_A.weight": "down", ".lora_B.weight": "up"}

_REFUSED: Final = {
    "modules_to_save": "whole modules trained beside the low-rank ones are not implemented",
    "use_dora": "DoRA's magnitudes are not implemented",
    "lora_bias": "biases of the low-rank products are not implemented",
    "layer_replication": "repeated layers are not implemented",
    "trainable_token_indices": "retrained embeddings are not implemented",
    "target_parameters": "adapters on parameters, such as those of experts, are not implemented",
    "use_qalora": "QALoRA is not implemented",
    "alora_invocation_tokens": "activated LoRA is not implemented",
    "arrow_config": "routing between adapters is not implemented",
    "megatron_config": "Megatron's layers are not implemented",
}


@dataclass(frozen=True, slots=True)
class AdapterPlan:
    """What an adapter holds, known from its config and its header alone."""

    path: Path
    rank: int
    """The largest."""
    elements: int
    modules: Mapping[str, tuple[Target, str, str, float]]
    """Module: where it goes, its two tensors by name (A [r, inputs] and B [outputs, r]), and the factor on B."""


def plan_adapter(path: Path | str, architecture: Architecture) -> AdapterPlan:
    """Read config and header of the adapter in directory `path`. Imports no torch.

    Raises: UnsupportedAdapter: not there, damaged, not LoRA, something it was trained with that is not implemented, or
    a module or shape that this model does not have.
    """
    path = Path(path)
    config = _config(path)
    found: dict[str, dict[str, tuple[str, Entry]]] = {}
    known = targets(architecture)
    for name, entry in _entries(path).items():
        module, side = _split(name, known)
        found.setdefault(module, {})[side] = (name, entry)
    if not found:
        raise UnsupportedAdapter(
            field="adapter", value=str(path), why="it holds no tensors", remedy="the directory save_pretrained wrote"
        )
    modules: dict[str, tuple[Target, str, str, float]] = {}
    ranks, elements = [], 0
    for module, sides in found.items():
        target = known[module]
        if sides.keys() != {"down", "up"}:
            raise UnsupportedAdapter(
                field=module, value=sorted(sides), why="one of its two matrices is missing", remedy="the whole adapter"
            )
        down, up = sides["down"][1].shape, sides["up"][1].shape
        if len(down) != 2 or len(up) != 2 or down != (up[1], target.inputs) or up != (target.outputs, down[0]):
            raise UnsupportedAdapter(
                field=module,
                value=(down, up),
                why=f"this model has a matrix of {target.outputs} x {target.inputs} there",
                remedy="an adapter that was trained on this model",
            )
        ranks.append(down[0])
        elements += down[0] * (target.inputs + target.outputs)
        modules[module] = (target, sides["down"][0], sides["up"][0], _factor(config, module, down[0]))
    return AdapterPlan(path, max(ranks), elements, modules)


def load_adapter(plan: AdapterPlan, dtype: torch.dtype, device: torch.device) -> Weights:
    """Its tensors as the step needs them: the parts of a place under each other, the factor in the second matrix."""
    import torch
    from safetensors import safe_open

    from penstock.engine.lora.step import Delta, Part, Place

    by_place: dict[tuple[int, Place], list[tuple[Target, torch.Tensor, torch.Tensor]]] = {}
    with safe_open(plan.path / WEIGHTS, framework="pt") as file:
        for target, down_name, up_name, factor in plan.modules.values():
            down = file.get_tensor(down_name).to(device, dtype, copy=True)
            # In float32 first: the factor is no power of two, and bfloat16 would round twice.
            up = (file.get_tensor(up_name).to(device, torch.float32) * factor).to(dtype)
            by_place.setdefault((target.layer, target.place), []).append((target, down, up))
    weights: dict[tuple[int, Place], Delta] = {}
    for key, parts in by_place.items():
        parts.sort(key=lambda part: part[0].first)
        weights[key] = Delta(
            torch.cat([down for _, down, _ in parts]), tuple(Part(target.first, up) for target, _, up in parts)
        )
    return weights


def adapter_elements_bound(
    model: Path | str, adapters: Iterable[Path | str], *, room: int, max_rank: int, more: bool
) -> int:
    """Elements that adapters of the checkpoint in `model` can come to take: those given, and if there may be `more`,
    the largest possible ones in the rest of the room. Reads headers only; the given ones are judged on the way.

    Raises: UnsupportedModel, UnsupportedAdapter.
    """
    architecture = read_architecture(model)
    plans = [plan_adapter(path, architecture) for path in adapters]
    for plan in plans:
        check_rank(plan, max_rank)
    rest = room - len(plans) if more else 0
    return sum(plan.elements for plan in plans) + rest * adapter_elements(architecture, max_rank)


def check_rank(plan: AdapterPlan, max_rank: int) -> None:
    """Raises UnsupportedAdapter: it is larger than what memory was set aside for."""
    if plan.rank > max_rank:
        raise UnsupportedAdapter(
            field="r",
            value=plan.rank,
            why=f"adapters of rank {max_rank} at most have room here",
            remedy=f"model.max_rank: {plan.rank}",
        )


def adapter_digest(path: Path | str) -> str:
    """SHA-256 of config and weights: whether an adapter that is loaded again is the one it was."""
    digest = hashlib.sha256()
    for name in ("adapter_config.json", WEIGHTS):
        with (Path(path) / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _config(path: Path) -> Mapping[str, Any]:
    file = path / "adapter_config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as error:
        raise UnsupportedAdapter(
            field="adapter",
            value=str(path),
            why=f"adapter_config.json cannot be read ({error})",
            remedy=f"a directory that PEFT wrote: adapter_config.json and {WEIGHTS}",
        ) from None
    if config.get("peft_type") != "LORA":
        raise UnsupportedAdapter(
            field="peft_type", value=config.get("peft_type"), why="only LoRA is implemented", remedy="a LoRA adapter"
        )
    bias = config.get("bias", "none")
    if bias != "none":
        raise UnsupportedAdapter(
            field="bias", value=bias, why="trained biases are not implemented", remedy='an adapter with bias "none"'
        )
    for key, why in _REFUSED.items():
        if config.get(key):
            raise UnsupportedAdapter(field=key, value=config[key], why=why, remedy="an adapter trained without it")
    for key, default in (("r", 8), ("lora_alpha", 8)):
        value = config.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise UnsupportedAdapter(field=key, value=value, why="it must be more than 0", remedy="the original config")
    return config


def _entries(path: Path) -> dict[str, Entry]:
    file = path / WEIGHTS
    if not file.is_file():
        pickled = (path / "adapter_model.bin").exists()
        raise UnsupportedAdapter(
            field="adapter",
            value=str(path),
            why="it is a pickle: reading it can run code from elsewhere" if pickled else f"there is no {WEIGHTS} in it",
            remedy="save it with safe_serialization=True" if pickled else "the directory save_pretrained wrote",
        )
    try:
        return entries_of(file)
    except UnsupportedModel as error:
        raise UnsupportedAdapter(
            field=error.field.replace("model", "adapter", 1), value=error.value, why=error.why, remedy=error.remedy
        ) from None


def _split(name: str, known: Mapping[str, Target]) -> tuple[str, str]:
    """Module and side ("down" or "up") of a tensor. Raises UnsupportedAdapter: the model has no such place."""
    for suffix, side in _SIDES.items():
        if not name.endswith(suffix):
            continue
        module = name.removeprefix(_PREFIX).removesuffix(suffix)
        # Trained on the model without its head: its modules lack the outer name.
        for candidate in (module, f"model.{module}", f"transformer.{module}"):
            if candidate in known:
                return candidate, side
    supported = sorted({module.rpartition(".")[2] for module in known})
    raise UnsupportedAdapter(
        field="target_modules",
        value=name.removeprefix(_PREFIX),
        why="this engine attaches nothing there",
        remedy="an adapter with target_modules among " + ", ".join(supported),
    )


def _factor(config: Mapping[str, Any], module: str, rank: int) -> float:
    """alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA (Kalajdzievski, 2023). Raises UnsupportedAdapter."""
    alpha, field = config.get("lora_alpha", 8), "lora_alpha"
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise _not_a_number("alpha_pattern", patterns)
    for pattern, other in patterns.items():
        # Names and not regular expressions: one that cost minutes would hold up everybody.
        if module == pattern or module.endswith(f".{pattern}"):
            alpha, field = other, f"alpha_pattern.{pattern}"
            break
        if not pattern.replace("_", "").replace(".", "").isalnum():
            raise UnsupportedAdapter(
                field="alpha_pattern",
                value=pattern,
                why="it is a regular expression; names of modules are understood",
                remedy="the modules by name, such as q_proj or layers.0.self_attn.q_proj",
            )
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise _not_a_number(field, alpha)
    return float(alpha / rank**0.5 if config.get("use_rslora") else alpha / rank)


def _not_a_number(field: str, value: object) -> UnsupportedAdapter:
    return UnsupportedAdapter(
        field=field, value=repr(value)[:80], why="not a finite number for a module", remedy="such as 16"
    )

"""From config.json to an `Architecture`: which family it is, what is refused, and shapes that cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from penstock.engine.architecture import gemma, gpt2, llama, mixtures, phi3
from penstock.engine.architecture.shape import Architecture, Config
from penstock.errors import UnsupportedModel

ACTIVATIONS: Final = ("silu", "swish", "gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "relu")

_LIKE_LLAMA: Final[dict[str, Callable[[str, Config], Architecture]]] = {
    "Llama": llama.llama,
    "Mistral": llama.mistral,
    "Qwen2": llama.qwen2,
    "Qwen3": llama.qwen3,
    "Mixtral": mixtures.mixtral,
    "Qwen3Moe": mixtures.qwen3_moe,
    "Gemma2": gemma.gemma2,
    "Gemma3": gemma.gemma3,
    "Phi3": phi3.phi3,
}

FAMILIES: Final[dict[str, Callable[[str, Config], Architecture]]] = {
    **{f"{stem}ForCausalLM": family for stem, family in _LIKE_LLAMA.items()},
    "GPT2LMHeadModel": gpt2.gpt2,
}
"""By architectures[0]. The implementation of each is in engine/models/."""

HEADLESS: Final[dict[str, Callable[[str, Config], Architecture]]] = {
    **{f"{stem}Model": family for stem, family in _LIKE_LLAMA.items() if stem != "Gemma3"},
    "Gemma3TextModel": gemma.gemma3,
}
"""The same without logits: what embedding models are published as."""


def read_architecture(path: Path | str) -> Architecture:
    """The architecture of the checkpoint in directory `path`.

    Raises: UnsupportedModel: no config.json, an architecture or an option that is not implemented, or a shape that
    cannot be.
    """
    config = read_config(path)
    names = config.get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else None
    family = FAMILIES.get(name or "") or HEADLESS.get(name or "")
    if name is None or family is None:
        raise UnsupportedModel(
            field="architectures[0]",
            value=name,
            why="this engine has no implementation of it",
            remedy="a checkpoint of one of " + ", ".join(sorted(FAMILIES)),
        )
    if config.get("quantization_config"):
        raise UnsupportedModel(
            field="quantization_config",
            value=_method(config["quantization_config"]),
            why="quantized weights are not implemented",
            remedy="the checkpoint's unquantized version (float32, float16 or bfloat16)",
        )
    try:
        architecture = family(name, config)
        if name in HEADLESS:
            architecture = replace(architecture, head=False, tied_embeddings=True)
        _check(architecture)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UnsupportedModel(
            field="config.json", value=name, why=f"a key in it holds what it cannot ({type(error).__name__}: {error})",
            remedy="the original config.json",
        ) from None  # fmt: skip
    return architecture


def read_config(path: Path | str) -> Config:
    """config.json of the checkpoint in directory `path`. Raises UnsupportedModel when there is none to read."""
    file = Path(path) / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UnsupportedModel(
            field="model",
            value=str(path),
            why=f"config.json cannot be read ({error})",
            remedy="the directory of a Hugging Face checkpoint: config.json, *.safetensors, tokenizer.json",
        ) from None
    if not isinstance(config, dict):
        raise UnsupportedModel(
            field="config.json", value=type(config).__name__, why="it must be an object", remedy="the original file"
        )
    return config


def _method(quantization: object) -> object:
    return quantization.get("quant_method") if isinstance(quantization, dict) else quantization


def _check(architecture: Architecture) -> None:
    """Shapes that cannot be, said before a tensor is read."""
    if architecture.heads % architecture.kv_heads:
        raise UnsupportedModel(
            field="num_key_value_heads",
            value=architecture.kv_heads,
            why=f"it must divide num_attention_heads ({architecture.heads})",
            remedy="the original config.json",
        )
    turned = (architecture.rope and architecture.rope.width) or architecture.head_dim
    if architecture.rope is not None and (turned % 2 or turned > architecture.head_dim):
        raise UnsupportedModel(field="head_dim", value=turned, why="RoPE rotates pairs", remedy="an even width")
    if architecture.activation not in ACTIVATIONS:
        raise UnsupportedModel(
            field="hidden_act",
            value=architecture.activation,
            why="this activation is not implemented",
            remedy="one of " + ", ".join(ACTIVATIONS),
        )
    experts = architecture.experts
    if experts is not None and experts.per_token > experts.count:
        raise UnsupportedModel(
            field="num_experts_per_tok",
            value=experts.per_token,
            why=f"there are {experts.count} experts",
            remedy="the original config.json",
        )

"""Models of random weights, made where they run: no checkpoint on a disk, none to carry to a machine."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from penstock.engine.architecture.llama import llama
from penstock.engine.loader import LoadedModel
from penstock.engine.models.decoder import Decoder, DenseMlp, Layer

SHAPES: dict[str, dict[str, Any]] = {
    "8b": {
        "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192, "rope_theta": 500000.0,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "hidden_act": "silu",
    },
    "tiny": {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "hidden_act": "silu",
    },
}  # fmt: skip
"""config.json's words: Llama 3 8B, and one for trying the script."""


def parameters(shape: str) -> int:
    """All weights, embedding and head included: what a model's name counts."""
    c = SHAPES[shape]
    width = c["hidden_size"] // c["num_attention_heads"]
    queries, keys = c["hidden_size"], c["num_key_value_heads"] * width
    layer = c["hidden_size"] * (queries + 2 * keys) + queries * c["hidden_size"]
    layer += 3 * c["hidden_size"] * c["intermediate_size"]
    norms = 2 * c["hidden_size"] * c["num_hidden_layers"] + c["hidden_size"]
    return c["num_hidden_layers"] * layer + 2 * c["vocab_size"] * c["hidden_size"] + norms


def product_shapes(shape: str) -> dict[str, tuple[int, int]]:
    """(O, I) of a layer's products."""
    c = SHAPES[shape]
    hidden, inner = c["hidden_size"], c["intermediate_size"]
    width = hidden // c["num_attention_heads"]
    return {
        "qkv": (hidden + 2 * c["num_key_value_heads"] * width, hidden),
        "out": (hidden, hidden),
        "gate_up": (2 * inner, hidden),
        "down": (hidden, inner),
    }


def random_model(shape: str, dtype: torch.dtype, device: torch.device) -> LoadedModel:
    """Weights of a spread that keeps activations near one."""
    config = SHAPES[shape]
    architecture = llama("LlamaForCausalLM", config)
    generator = torch.Generator(device=device).manual_seed(0)

    def matrix(rows: int, columns: int) -> Tensor:
        made = torch.empty(rows, columns, dtype=dtype, device=device)
        return made.normal_(0.0, columns**-0.5, generator=generator)

    hidden, shapes = config["hidden_size"], product_shapes(shape)
    ones = torch.ones(hidden, dtype=dtype, device=device)
    with torch.inference_mode():
        layers = [
            Layer(
                attention_norm=ones, qkv=matrix(*shapes["qkv"]), qkv_bias=None, qk_norm=None,
                out=matrix(*shapes["out"]), out_bias=None, scale=architecture.attention_scales[number],
                window=architecture.windows[number], mlp_norm=ones,
                mlp=DenseMlp(matrix(*shapes["gate_up"]), None, matrix(*shapes["down"]), None, None),
                attention_output_norm=None, mlp_output_norm=None,
            )
            for number in range(config["num_hidden_layers"])
        ]  # fmt: skip
        embedding = matrix(config["vocab_size"], hidden) * hidden**0.5
        model = Decoder(architecture, embedding, layers, ones, matrix(config["vocab_size"], hidden))
    return LoadedModel(model, architecture, dtype, device)

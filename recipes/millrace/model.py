"""A compact Llama: RMSNorm, rotary positions, grouped-query attention, SwiGLU, tied embeddings.

Parameter names and the layout of every matrix are those of Hugging Face's `LlamaForCausalLM`, so a checkpoint written
here loads there unchanged, and there is nothing to convert.

Shape suffixes: B rows, L positions, D width, V vocabulary, N query heads, K key/value heads, H head width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Shape:
    """What the model looks like. The defaults are Millrace: 3.0 M parameters, of which the embedding is 0.26 M."""

    vocab: int = 1024
    width: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    feed_forward: int = 640
    context: int = 2048
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    def parameters(self) -> int:
        """Parameters of the whole model; the output head shares the embedding.

        >>> Shape().parameters()
        3016960
        """
        attention = 2 * self.width * self.width + 2 * self.width * self.kv_heads * self.head_width
        layer = attention + 3 * self.width * self.feed_forward + 2 * self.width
        return self.vocab * self.width + self.layers * layer + self.width

    def config(self, *, bos: int, eos: int, pad: int) -> dict[str, Any]:
        """The `config.json` that Hugging Face and every serving engine reads."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab,
            "hidden_size": self.width,
            "intermediate_size": self.feed_forward,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_width,
            "hidden_act": "silu",
            "max_position_embeddings": self.context,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": self.norm_eps,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "mlp_bias": False,
            "initializer_range": 0.02,
            "tie_word_embeddings": True,
            "use_cache": True,
            "bos_token_id": bos,
            "eos_token_id": eos,
            "pad_token_id": pad,
            "torch_dtype": "bfloat16",
        }

    @classmethod
    def of(cls, config: dict[str, Any]) -> Shape:
        """The shape that a `config.json` describes."""
        return cls(
            vocab=config["vocab_size"],
            width=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            kv_heads=config["num_key_value_heads"],
            feed_forward=config["intermediate_size"],
            context=config["max_position_embeddings"],
            rope_theta=config["rope_theta"],
            norm_eps=config["rms_norm_eps"],
        )


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.q_proj = nn.Linear(shape.width, shape.heads * shape.head_width, bias=False)
        self.k_proj = nn.Linear(shape.width, shape.kv_heads * shape.head_width, bias=False)
        self.v_proj = nn.Linear(shape.width, shape.kv_heads * shape.head_width, bias=False)
        self.o_proj = nn.Linear(shape.heads * shape.head_width, shape.width, bias=False)

    def forward(self, x_BLD: Tensor, cos_LH: Tensor, sin_LH: Tensor) -> Tensor:
        rows, length, _ = x_BLD.shape
        q_BNLH, k_BKLH, v_BKLH = (
            projection(x_BLD).view(rows, length, -1, self.shape.head_width).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q_BNLH, k_BKLH = rotate(q_BNLH, cos_LH, sin_LH), rotate(k_BKLH, cos_LH, sin_LH)
        group = self.shape.heads // self.shape.kv_heads
        k_BNLH, v_BNLH = (part.repeat_interleave(group, dim=1) for part in (k_BKLH, v_BKLH))
        mixed_BNLH = functional.scaled_dot_product_attention(q_BNLH, k_BNLH, v_BNLH, is_causal=True)
        mixed: Tensor = self.o_proj(mixed_BNLH.transpose(1, 2).reshape(rows, length, -1))
        return mixed


class FeedForward(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.width, shape.feed_forward, bias=False)
        self.up_proj = nn.Linear(shape.width, shape.feed_forward, bias=False)
        self.down_proj = nn.Linear(shape.feed_forward, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.width, shape.norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = RMSNorm(shape.width, shape.norm_eps)
        self.mlp = FeedForward(shape)

    def forward(self, x: Tensor, cos_LH: Tensor, sin_LH: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos_LH, sin_LH)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Body(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab, shape.width)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.width, shape.norm_eps)


class Millrace(nn.Module):
    """The whole model. `state_dict()` has the names that `LlamaForCausalLM` expects (the tied head is left out)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Body(shape)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                into_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                scale = 0.02 / math.sqrt(2 * shape.layers) if into_residual else 0.02
                nn.init.normal_(parameter, std=scale)

    def forward(self, tokens_BL: Tensor) -> Tensor:
        """Logits [B, L, V] in the dtype of the weights; position i sees tokens 0 to i."""
        x_BLD = self.model.embed_tokens(tokens_BL)
        cos_LH, sin_LH = rope(tokens_BL.shape[1], self.shape, x_BLD.dtype)
        for layer in self.model.layers:
            x_BLD = layer(x_BLD, cos_LH, sin_LH)
        return functional.linear(self.model.norm(x_BLD), self.model.embed_tokens.weight)


def rope(length: int, shape: Shape, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine [L, H] of the rotary angles, the two halves of a head paired as in Llama (Su et al., 2021)."""
    half = torch.arange(0, shape.head_width, 2, dtype=torch.float32) / shape.head_width
    angle_LH = torch.outer(torch.arange(length, dtype=torch.float32), shape.rope_theta**-half).repeat(1, 2)
    return angle_LH.cos().to(dtype), angle_LH.sin().to(dtype)


def rotate(x: Tensor, cos_LH: Tensor, sin_LH: Tensor) -> Tensor:
    low, high = x.chunk(2, dim=-1)
    return x * cos_LH + torch.cat((-high, low), dim=-1) * sin_LH

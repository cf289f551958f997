"""Llama 2, 3, 3.x; and Mistral, Qwen2, Qwen2.5, Qwen3, Gemma and Phi-3, which differ in what `Architecture` says.

Mistral adds a sliding window, Qwen2 biases on queries, keys and values and windows on the later layers, Qwen3 norms
on queries and keys. Gemma 2 norms what attention and MLP give, scales embeddings and caps scores and logits; Gemma 3
has Qwen3's norms instead of the caps, and a second RoPE for windowed layers. Phi-3 stores fused what is stacked here.
Sources: Gemma 2, Gemma Team, 2024; Gemma 3 Technical Report, 2025; Phi-3 Technical Report, Abdin et al., 2024.
"""

from __future__ import annotations

from penstock.engine.architecture import Architecture
from penstock.engine.checkpoint import Checkpoint
from penstock.engine.models.decoder import Decoder, load_decoder, load_dense_mlp
from penstock.engine.weights import Pack


def load(architecture: Architecture, checkpoint: Checkpoint, pack: Pack | None) -> Decoder:
    return load_decoder(architecture, checkpoint, load_dense_mlp, pack)

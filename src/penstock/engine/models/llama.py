"""Llama 2, 3, 3.x; and Mistral, Qwen2, Qwen2.5 and Qwen3, which differ in what `Architecture` already says.

Mistral adds a sliding window, Qwen2 biases on queries, keys and values and windows on the later layers, Qwen3 norms
on queries and keys. Tensor names and the order of operations are Llama's in all of them.
"""

from __future__ import annotations

from penstock.engine.architecture import Architecture
from penstock.engine.checkpoint import Checkpoint
from penstock.engine.models.decoder import Decoder, load_decoder, load_dense_mlp


def load(architecture: Architecture, checkpoint: Checkpoint) -> Decoder:
    return load_decoder(architecture, checkpoint, load_dense_mlp)

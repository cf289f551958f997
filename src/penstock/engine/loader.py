"""From a directory to a model that is ready to run: reads config.json, picks the family, takes the weights."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import torch
from torch import Tensor

from penstock.engine import process_memory
from penstock.engine.architecture import Architecture, read_architecture
from penstock.engine.batch import Batch
from penstock.engine.checkpoint import Checkpoint
from penstock.engine.models import gpt2, llama, mixtral, qwen3_moe
from penstock.engine.ops.kernels import Kernels
from penstock.engine.ops.rope import LayerAngles
from penstock.engine.weights import Pack
from penstock.engine.weights.formats import format_of
from penstock.engine.weights.pack import packing


class Model(Protocol):
    """What a family's file makes of a checkpoint."""

    def hidden(self, batch: Batch, pool: Tensor, kernels: Kernels, rope: LayerAngles | None) -> Tensor:
        """The normed last hidden state [R, D] of the rows that yield a token; writes this step's KV to `pool`."""

    def logits(self, hidden: Tensor, kernels: Kernels) -> Tensor:
        """[R, D] to [R, V], in float32; the next call may write over them."""

    def pack(self, how: Pack, *, tied: bool = True) -> None:
        """Replace the matrices of all products (not embeddings, norms, routers) by what `how` makes of each.

        `tied`: a head that is the embedding too becomes a matrix of its own; else it stays as it is.
        """


_LOADERS: Final[dict[str, Callable[[Architecture, Checkpoint, Pack | None], Model]]] = {
    "Mixtral": mixtral.load,
    "Qwen3Moe": qwen3_moe.load,
    "GPT2": gpt2.load,
}
"""By what architectures[0] begins with; all others are llama.load's."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """Weights in memory. One may serve several engines: it holds no state between steps. `dtype`: of KV."""

    model: Model
    architecture: Architecture
    dtype: torch.dtype
    device: torch.device


def load_model(
    path: Path | str, *, dtype: str = "float32", device: str = "cpu", on_read: Callable[[int, int], None] | None = None
) -> LoadedModel:
    """Read the checkpoint in directory `path`; its weights become `dtype` (a name in weights/formats.py), whatever they
    are stored in. `on_read`: as Checkpoint.

    Raises: UnsupportedModel: see engine/architecture/ and engine/checkpoint.py, or `dtype` does not suit the device.
    """
    form = format_of(dtype)
    architecture = read_architecture(path)
    number_type: torch.dtype = getattr(torch, form.compute)
    place = torch.device(device)
    pack = packing(dtype, place)
    family = re.sub("(ForCausalLM|LMHeadModel|TextModel|Model)$", "", architecture.name)
    # Embedding models are published without the prefix, as the inner model of transformers saves itself.
    prefix = gpt2.PREFIX if family == "GPT2" else "model."
    with process_memory.loading(), torch.inference_mode():
        checkpoint = Checkpoint(path, number_type, place, prefix=prefix, on_read=on_read)
        model = _LOADERS.get(family, llama.load)(architecture, checkpoint, pack)
        if pack is not None:
            model.pack(pack, tied=form.narrow)
    return LoadedModel(model, architecture, number_type, place)

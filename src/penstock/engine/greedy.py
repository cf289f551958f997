"""The largest logit, ties to the lowest id: the sampler's interface at its smallest."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from penstock.control.request import Request
from penstock.control.step import TokenLogprobs


@dataclass(slots=True)
class SampledRows:
    tokens: np.ndarray
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)


class Sampler:
    """Greedy for every request."""

    def __init__(self, max_seqs: int, vocab_size: int) -> None:
        self.max_seqs, self.vocab_size = max_seqs, vocab_size

    def add(self, slot: int, request: Request) -> None:
        pass

    def remove(self, slot: int) -> None:
        pass

    def sample(self, logits: Tensor, slots: np.ndarray, output_lengths: np.ndarray) -> SampledRows:
        bad = torch.isnan(logits).any(dim=1).nonzero().flatten().tolist()
        return SampledRows(
            tokens=logits.argmax(dim=-1).cpu().numpy(), failed=dict.fromkeys(bad, "the logits are not numbers")
        )

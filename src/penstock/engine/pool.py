"""KV storage: one preallocated tensor of blocks on the device, one on the host for what is swapped out.

A block is contiguous over all layers ([L, 2, K, B, H]), so a swap is one copy per block and a block of the device
can lie anywhere in the host pool.
"""

from __future__ import annotations

import torch
from torch import Tensor

from penstock.control.step import Swap
from penstock.engine import process_memory
from penstock.engine.architecture import Architecture


class KVPool:
    """P device blocks and `host_blocks` host blocks of B tokens each; `device` and `host` are [P, L, 2, K, B, H]."""

    def __init__(
        self,
        architecture: Architecture,
        *,
        blocks: int,
        block_tokens: int,
        host_blocks: int,
        dtype: torch.dtype,
        device: torch.device,
        scratch_blocks: int = 0,
    ) -> None:
        """`scratch_blocks` more stand behind the others on the device: nobody's, for rows that only fill up a step."""
        block = (architecture.layers, 2, architecture.kv_heads, block_tokens, architecture.head_dim)
        self.blocks, self.block_tokens, self.host_blocks = blocks, block_tokens, host_blocks
        # Not zeroed: nothing is read before it is written, and untouched pages cost no memory on the CPU.
        self.device: Tensor = torch.empty((blocks + scratch_blocks, *block), dtype=dtype, device=device)
        if device.type == "cpu":
            # A head's keys of one block are about a page of 4 KiB: each would be looked up in the page tables.
            process_memory.ask_for_large_pages(self.device.data_ptr(), self.device.nbytes)
        self.host: Tensor = torch.empty((host_blocks, *block), dtype=dtype, pin_memory=device.type == "cuda")

    def swap_out(self, swap: Swap) -> None:
        """Copy `swap.device` to `swap.host`, block by block."""
        self.host[list(swap.host)] = self.device[list(swap.device)].to(self.host.device)

    def swap_in(self, swap: Swap) -> None:
        """Copy `swap.host` to `swap.device`, block by block."""
        self.device[list(swap.device)] = self.host[list(swap.host)].to(self.device.device)

    @property
    def bytes(self) -> int:
        return self.device.nbytes + self.host.nbytes

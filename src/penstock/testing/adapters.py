"""Small random adapters in PEFT's layout, and the model that merging one gives, for tests that compare the two."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def tiny_adapter(
    base: Path | str,
    directory: Path | str,
    *,
    seed: int = 0,
    r: int = 4,
    target_modules: Sequence[str] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    std: float = 0.2,
    **config: Any,
) -> Path:
    """Write a random LoRA adapter for the checkpoint `base` to `directory`, through `peft`. Returns the directory.

    Both matrices are random, so it changes the output from the first token on. `config`: of peft's LoraConfig.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tuned = get_peft_model(
        model, LoraConfig(r=r, target_modules=list(target_modules), **{"lora_alpha": 2 * r, **config})
    )
    generator = torch.Generator().manual_seed(1000 + seed)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
    tuned.save_pretrained(str(directory))
    return Path(directory)


def merged_checkpoint(base: Path | str, adapter: Path | str, directory: Path | str) -> Path:
    """The checkpoint that `base` becomes when `peft` merges the adapter into its weights."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().save_pretrained(directory)
    return Path(directory)

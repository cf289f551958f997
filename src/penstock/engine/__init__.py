"""Computes: a step of control becomes tokens. Read in this order.

1. engine.py: `run(step) -> StepResult`, the only way in; sequences.py is the state it keeps between steps.
2. batch.py and pool.py: a step as ragged tensors; keys and values in paged blocks.
3. models/decoder.py, then a family's file; ops/kernels.py for the operations below it.
4. device_engine.py: the same engine where a GPU computes and the host runs ahead of it; staging.py, graphs.py.

architecture.py and checkpoint.py read Hugging Face checkpoints (the first half without torch), loader.py makes
a model of one, sampling/ chooses tokens, guide/ holds them to a grammar, tokenizer.py turns text to ids and
back. This file imports nothing, so that the tokenizer can be had without torch.
"""

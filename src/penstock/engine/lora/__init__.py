"""Low-rank adapters: several at once over one model, each request with its own (LoRA, Hu et al., ICLR 2022).

adapter.py reads one as PEFT writes it, targets.py knows where it can attach, registry.py keeps those that are loaded,
step.py adds what they change to the rows of a step.
"""

"""What config.json says, in one vocabulary: every family's spelling is read here and nowhere else.

`read_architecture` turns a checkpoint's config.json into an `Architecture`: shapes, norms, biases, windows, RoPE,
experts. It imports no torch, so that a checkpoint can be judged (does it fit, is it supported) before anything heavy
is loaded. A family is one function in a file of its group; the name it is found by is `architectures[0]` (read.py).
"""

from penstock.engine.architecture.read import FAMILIES, HEADLESS, read_architecture, read_config
from penstock.engine.architecture.rope import ROPE_TYPES
from penstock.engine.architecture.shape import Architecture, Config, Experts, Rope

__all__ = [
    "FAMILIES", "HEADLESS", "ROPE_TYPES", "Architecture", "Config", "Experts", "Rope", "read_architecture",
    "read_config",
]  # fmt: skip

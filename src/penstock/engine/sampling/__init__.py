"""From logits to tokens. Read sampler.py first: it applies a request's options in their order; the rest are its parts.

penalties.py, truncation.py and logprobs.py hold one option each, draw.py the random choice and the numbers behind it.
"""

from penstock.engine.sampling.sampler import SampledRows, Sampler

__all__ = ["SampledRows", "Sampler"]

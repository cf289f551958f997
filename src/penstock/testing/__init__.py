"""Doubles and small models that ship with the product, so that users can test what they build on it."""

from penstock.testing.checkpoints import tiny_checkpoint

__all__ = ["tiny_checkpoint"]

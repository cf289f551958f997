"""Doubles and small models that ship with the product, so that users can test what they build on it."""

from penstock.testing.checkpoints import tiny_checkpoint
from penstock.testing.executor import ScriptedExecutor, expected_output
from penstock.testing.replicas import Driver, small_replica

__all__ = ["Driver", "ScriptedExecutor", "expected_output", "small_replica", "tiny_checkpoint"]

"""PROVES: one short module per paper, its numbers beside ours.

Read `registry.py` (what a reproduction is, and which there are), then `long_context_peak.py` as the shortest example.
A module names its paper and has a function `run() -> Reproduction`; it is imported only when asked for.
"""

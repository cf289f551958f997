"""First come, first served: the order of Orca, vLLM and Sarathi-Serve. An evicted sequence keeps its place."""

from __future__ import annotations

from penstock.control.order.queue import KeyedOrder


class Arrival(KeyedOrder):
    """By submission number."""

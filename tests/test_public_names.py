"""The package's public names: a new one is a promise, so this list changes only on purpose."""

from __future__ import annotations

import penstock


def test_the_public_names_are_these_and_all_of_them_load() -> None:
    assert penstock.__all__ == ["Deployment", "Request", "Sampling", "Service", "simulate"]
    assert all(getattr(penstock, name).__name__ == name for name in penstock.__all__)

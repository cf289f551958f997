"""Idealized runtime: what the twin gives for one request alone is the sum of its steps, and nearly a line."""

from __future__ import annotations

import pytest

from penstock.deployment import Deployment
from penstock.runtime.idealized import alone_s, idealized
from penstock.runtime.modelled import model
from penstock.runtime.simulate import simulate


@pytest.mark.parametrize("prompt", [100, 1500])
def test_one_simulated_request_takes_its_idealized_runtime(prompt: int) -> None:
    alone = Deployment.parse(
        {
            "model": {"path": "llama-3-8b"}, "hardware": {"name": "h100-sxm"}, "twin": {"price": "roofline"},
            "workload": {"requests": 1, "prompt_tokens": str(prompt), "output_tokens": "30"},
        }
    )  # fmt: skip
    columns = simulate(alone).requests
    taken = columns.finish_s[0] - columns.arrival_s[0]
    assert taken == pytest.approx(alone_s(model(alone), prompt, 30), rel=1e-9)


def test_it_is_an_affine_law() -> None:
    found = idealized(model(Deployment.parse({"model": {"path": "llama-3-8b"}, "hardware": {"name": "a100-sxm"},
                                              "twin": {"price": "roofline"}})))  # fmt: skip
    assert found.r_squared > 0.999
    assert found.affine.seconds(512, 64) > found.affine.prompt_seconds(512)

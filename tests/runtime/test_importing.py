"""What an offline run does without: each of these takes memory and time of the start."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from importlib import import_module

import pytest

from penstock.runtime.importing import uncollected

HEAVY = (
    "accelerate", "fastapi", "httpx", "huggingface_hub", "jinja2", "llguidance", "networkx", "numba", "openai",
    "pandas", "prometheus_client", "pyarrow", "rich", "scipy", "starlette", "sympy", "tokenizers", "torch._dynamo",
    "torch._inductor", "transformers", "triton", "typer", "uvicorn",
)  # fmt: skip

PROGRAM = """
import json, sys
from penstock.control.request import Request, Sampling
from penstock.deployment import Deployment
from penstock.runtime.offline import generate, offline_deployment

deployment = offline_deployment(Deployment().model.path, requests=1, tokens=32, threads=1)
(result,) = generate(deployment, [Request(id="a", prompt=(5, 6, 7), max_tokens=4, sampling=Sampling(temperature=0.0))])
print(json.dumps([result.tokens, sorted(sys.modules)]))
"""


def test_an_offline_run_without_a_grammar_imports_nothing_it_does_not_need():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    tokens, modules = json.loads(done.stdout)
    assert len(tokens) == 4
    assert [name for name in HEAVY if name in modules] == []


def test_garbage_is_collected_again_after_large_imports_even_when_one_fails():
    assert gc.isenabled()
    with uncollected():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ImportError), uncollected():
        import_module("penstock.no_such_module")
    assert gc.isenabled()


def test_who_collects_no_garbage_is_left_alone():
    gc.disable()
    try:
        with uncollected():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()

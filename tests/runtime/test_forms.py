"""What each model.dtype takes, told before anything loads; a deployment in a narrow one is sized and modelled so."""

from __future__ import annotations

import json
import subprocess
import sys

from penstock.deployment import Deployment
from penstock.runtime.forms import served_forms
from penstock.runtime.modelled import model
from penstock.runtime.size import size_up


def test_narrow_forms_take_less_and_kv_stays_in_the_compute_type() -> None:
    forms = {one.dtype: one for one in served_forms("millrace")}
    sizes = [forms[name].weight_bytes for name in ("float32", "bfloat16", "int8", "int8_weights", "int4")]
    assert sizes == sorted(sizes, reverse=True)
    assert forms["int8"].kv_bytes_per_token == forms["float32"].kv_bytes_per_token
    assert forms["int8"].device == forms["int4"].device == "cpu"
    assert served_forms("llama-3-8b") == []


def test_the_command_tells_them() -> None:
    command = ["inspect", "fit", "millrace", "--dtype", "bfloat16", "--json"]
    done = subprocess.run([sys.executable, "-m", "penstock", *command], capture_output=True, text=True, check=True)
    told = {one["dtype"]: one["weight_bytes"] for one in json.loads(done.stdout)["served"]}
    assert told == {one.dtype: one.weight_bytes for one in served_forms("millrace")}


def test_a_deployment_in_int8_is_sized_and_modelled_as_it_is_served() -> None:
    forms = {one.dtype: one for one in served_forms("millrace")}
    for dtype, weights in (("int8", "int8"), ("int8_weights", "int8"), ("int4", "int4")):
        deployment = Deployment.parse({"model": {"dtype": dtype}, "precision": {"weights": weights, "kv": "float32"}})
        size = size_up(deployment)
        assert (size.weight_bytes, size.kv_bytes_per_token) == (forms[dtype].weight_bytes, 4096)
        precision = model(Deployment.parse({"model": {"dtype": dtype}, "hardware": {"name": "h100-sxm"}})).precision
        assert (precision.weights, precision.head, precision.activations, precision.kv) == (
            weights, weights, "float32", "float32",
        )  # fmt: skip

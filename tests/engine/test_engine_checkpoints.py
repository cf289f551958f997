"""What the engine reads from disk, and what it refuses, by name and with a remedy."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from engine_driver import Driver
from safetensors.torch import load_file, save_file

from penstock.control.step import Step
from penstock.engine.architecture import FAMILIES as SUPPORTED
from penstock.engine.checkpoint import model_footprint
from penstock.engine.engine import Engine
from penstock.engine.loader import load_model
from penstock.errors import UnsupportedModel
from penstock.testing.checkpoints import FAMILIES

PROMPT = [17, 5, 201, 33, 90, 8]


@pytest.fixture
def copy(checkpoint, tmp_path):
    """copy(family, **overrides): a checkpoint a test may damage."""

    def make(family="llama", **overrides):
        for file in checkpoint(family, **overrides).iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        return tmp_path

    return make


def edit_config(path, **changes):
    file = path / "config.json"
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in config.items() if value != "removed"}))


def edit_weights(path, change):
    file = path / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


def greedy(path, max_tokens=16, **options):
    driver = Driver(Engine.load(path, blocks=16, block_tokens=8, max_seqs=1, **options), 16, 8)
    driver.add("a", PROMPT, max_tokens)
    driver.prefill("a")
    step = Step(0)
    driver.join(step, "a")
    driver.decode(step)
    driver.run(step)
    driver.decode_until_done()
    return driver.output["a"]


def test_a_sharded_checkpoint_reads_like_a_whole_one(checkpoint, expected):
    path = checkpoint("llama", max_shard_size="60KB")
    assert len(list(path.glob("*.safetensors"))) > 2
    assert greedy(path) == expected(path, [PROMPT], 16)[0]
    assert model_footprint(path) == model_footprint(checkpoint("llama"))


def test_bfloat16_weights_run_in_float32_when_that_is_asked_for(checkpoint, expected):
    path = checkpoint("llama", dtype="bfloat16")
    assert greedy(path) == expected(path, [PROMPT], 16)[0]


def test_gpt2_is_read_without_its_prefix_too(copy, expected, checkpoint):
    path = copy("gpt2")
    edit_weights(path, lambda w: [w.__setitem__(name.removeprefix("transformer."), w.pop(name)) for name in list(w)])
    assert greedy(path) == expected(checkpoint("gpt2"), [PROMPT], 16)[0]


@pytest.mark.parametrize(("spelling", "kind"), [("rope_type", "linear"), ("type", "linear"), ("type", "dynamic")])
def test_the_old_spelling_of_rope_scaling_means_the_same(spelling, kind, copy, expected, checkpoint):
    new = {"rope_type": kind, "factor": 2.0, "rope_theta": 5000.0}
    path = copy("llama", rope_parameters=new, max_position_embeddings=16)
    edit_config(path, rope_parameters="removed", rope_theta=5000.0, rope_scaling={spelling: kind, "factor": 2.0})
    wanted = expected(checkpoint("llama", rope_parameters=new, max_position_embeddings=16), [PROMPT], 16)[0]
    assert greedy(path) == wanted


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_footprint_is_what_transformers_counts(family, dtype, checkpoint):
    from transformers import AutoModelForCausalLM

    path = checkpoint(family)
    element = {"float32": 4, "bfloat16": 2}[dtype]
    found = model_footprint(path, dtype)
    model = AutoModelForCausalLM.from_pretrained(path)
    config = model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    assert found.parameters == model.num_parameters()
    assert found.weight_bytes == element * found.parameters
    assert found.kv_bytes_per_token == 2 * config.num_hidden_layers * kv_heads * width * element
    assert (found.max_sequence_tokens, found.vocab_size) == (512, 256)
    assert found.architecture in SUPPORTED


def test_the_footprint_is_known_without_loading_torch(checkpoint):
    program = (
        "import sys; from penstock.engine.checkpoint import model_footprint;"
        f"model_footprint({str(checkpoint('llama'))!r}); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_scaled_rope_stretches_the_longest_sequence(checkpoint):
    scaled = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0}
    path = checkpoint("llama", max_position_embeddings=32, rope_parameters=scaled)
    assert model_footprint(path).max_sequence_tokens == 128


def test_an_unsupported_architecture_is_refused_by_name_with_the_list_of_supported_ones(copy):
    path = copy()
    edit_config(path, architectures=["FalconForCausalLM"])
    with pytest.raises(UnsupportedModel) as refused:
        load_model(path)
    assert "FalconForCausalLM" in str(refused.value)
    assert all(name in str(refused.value) for name in SUPPORTED)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": "removed"}, "architectures"),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 2.0}}, "longrope.*llama3, yarn"),
        ({"rope_parameters": {"rope_type": "linear"}}, "factor"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ({"hidden_act": "laughter"}, "laughter.*silu"),
        ({"num_key_value_heads": 3}, "must divide"),
        ({"num_hidden_layers": 0}, "positive"),
        ({"num_hidden_layers": 4}, "lacks"),
        ({"num_hidden_layers": 2}, "no place"),
        ({"intermediate_size": 100}, "shape is"),
        ({"tie_word_embeddings": False, "vocab_size": 255}, "shape is"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_with_the_field(changes, words, copy):
    path = copy()
    edit_config(path, **changes)
    with pytest.raises(UnsupportedModel, match=words):
        load_model(path)


def test_a_missing_and_a_misplaced_tensor_are_named(copy):
    path = copy()
    edit_weights(path, lambda w: w.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(UnsupportedModel, match=r"layers\.1\.mlp\.up_proj"):
        load_model(path)
    edit_weights(path, lambda w: w.update({"model.layers.1.mlp.up_proj.weight": torch.zeros(96, 64)}))
    edit_weights(path, lambda w: w.update({"model.layers.1.self_attn.q_proj.bias": torch.zeros(64)}))
    with pytest.raises(UnsupportedModel, match=r"q_proj\.bias"):
        load_model(path)


def test_pickles_are_refused_with_the_remedy(copy):
    path = copy()
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(UnsupportedModel, match=r"pytorch_model\.bin.*safetensors"):
        load_model(path)


def test_damaged_files_are_refused(copy, checkpoint):
    path = copy()
    whole = (path / "model.safetensors").read_bytes()
    for damaged, words in ((b"", "header"), (whole[:200], "header"), (whole[:-5], "ends early"), (b"x" * 99, "header")):
        (path / "model.safetensors").write_bytes(damaged)
        with pytest.raises(UnsupportedModel, match=words):
            load_model(path)
    (path / "config.json").write_text("{")
    with pytest.raises(UnsupportedModel, match=r"config\.json"):
        load_model(path)


def test_a_missing_shard_is_named(copy):
    path = copy(max_shard_size="60KB")
    gone = sorted(path.glob("*.safetensors"))[0]
    gone.unlink()
    with pytest.raises(UnsupportedModel, match=gone.name):
        load_model(path)


def test_quantized_tensors_are_refused(copy):
    path = copy()
    edit_weights(path, lambda w: w.update({"model.norm.weight": torch.zeros(64, dtype=torch.int8)}))
    with pytest.raises(UnsupportedModel, match="I8"):
        load_model(path)


def test_an_unknown_dtype_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(UnsupportedModel, match="float16"):
        load_model(tmp_path, dtype="float16")

"""Embeddings equal what `transformers` gives as the last hidden state, however the prompt was cut and evicted."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from engine_driver import Driver, reference
from safetensors.torch import load_file, save_file

from penstock.control.request import Request, Sampling
from penstock.control.step import Step
from penstock.engine.engine import Engine
from penstock.engine.pooling import Pooling, read_pooling
from penstock.errors import InvalidRequest, UnsupportedModel

PROMPT = [17, 5, 201, 33, 90, 8, 77, 3, 120, 44, 9, 250, 61, 7, 18, 99, 31]
EMBED = Sampling(embed=True)


def hidden_states(path, prompt):
    from transformers import AutoModel

    with torch.no_grad():
        return AutoModel.from_pretrained(path, dtype=torch.float32).eval()(torch.tensor([prompt]))[0][0].numpy()


def embed(engine, prompt, chunk=None, evict_after=None):
    """The vector, beside a request that generates, in chunks, and evicted after some of them."""
    driver = Driver(engine, 64, 8)
    driver.add("text", PROMPT[:5], 30)
    driver.prefill("text")
    driver.add("vector", prompt, 1, sampling=EMBED)
    step, chunks, last = Step(0), 0, False
    driver.join(step, "text")
    driver.admit(step, "vector")
    while not last:
        last = driver.chunk(step, "vector", chunk)
        driver.decode(step)
        result = driver.run(step)
        step, chunks = Step(0), chunks + 1
        if chunks == evict_after:
            driver.evict(step, "vector")
            driver.decode(step)
            driver.run(step)
            step = Step(0)
            driver.admit(step, "vector")
    assert result.finished["vector"].reason == "length"
    assert result.tokens.keys() == {"text", "vector"}
    driver.decode_until_done()
    return np.frombuffer(result.embeddings["vector"], "<f4"), driver.output["text"]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "gpt2"])
@pytest.mark.parametrize("kind", ["last", "mean"])
def test_vectors_are_the_hidden_states_of_transformers(family, kind, checkpoint):
    path = checkpoint(family)
    states = hidden_states(path, PROMPT)
    wanted = states[-1] if kind == "last" else states.mean(axis=0)
    for chunk, evict_after in ((None, None), (5, None), (4, 2)):
        engine = Engine.load(path, blocks=64, block_tokens=8, max_seqs=4, pooling=Pooling(kind, normalize=False))
        vector, text = embed(engine, PROMPT, chunk, evict_after)
        np.testing.assert_allclose(vector, wanted, atol=1e-5, rtol=1e-5)
        assert text == reference(path, [PROMPT[:5]], 30)[0]


def test_normalized_vectors_have_length_one(checkpoint):
    path = checkpoint("llama")
    engine = Engine.load(path, blocks=64, block_tokens=8, max_seqs=4, pooling=Pooling("mean", normalize=True))
    mean = hidden_states(path, PROMPT).mean(axis=0)
    vector, _ = embed(engine, PROMPT, 3)
    np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-6)


def test_a_checkpoint_without_head_or_prefix_embeds_and_does_not_generate(checkpoint, tmp_path):
    source = checkpoint("qwen3")
    config = json.loads((source / "config.json").read_text()) | {"architectures": ["Qwen3Model"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = load_file(source / "model.safetensors")
    del weights["lm_head.weight"]
    save_file({name.removeprefix("model."): w for name, w in weights.items()}, tmp_path / "model.safetensors")
    engine = Engine.load(tmp_path, blocks=16, block_tokens=8, max_seqs=2, pooling=Pooling("last", normalize=False))
    driver = Driver(engine, 16, 8)
    driver.add("v", PROMPT, 1, sampling=EMBED)
    step = Step(0)
    driver.admit(step, "v")
    driver.chunk(step, "v")
    vector = np.frombuffer(driver.run(step).embeddings["v"], "<f4")
    np.testing.assert_allclose(vector, hidden_states(source, PROMPT)[-1], atol=1e-5, rtol=1e-5)
    with pytest.raises(InvalidRequest, match="only makes embeddings"):
        engine.add(Request(id="t", prompt=(1, 2), max_tokens=3))


def test_a_model_without_pooling_refuses_to_embed(checkpoint):
    engine = Engine.load(checkpoint("llama"), blocks=16, block_tokens=8, max_seqs=2)
    with pytest.raises(InvalidRequest, match="no embeddings"):
        engine.add(Request(id="v", prompt=(1, 2), max_tokens=1, sampling=EMBED))


def test_pooling_follows_the_files_of_sentence_transformers_and_the_deployment(tmp_path):
    assert read_pooling(tmp_path) is None
    assert read_pooling(tmp_path, kind="mean") == Pooling("mean", normalize=True)
    (tmp_path / "1_Pooling").mkdir()
    pooling, modules = tmp_path / "1_Pooling" / "config.json", tmp_path / "modules.json"
    pooling.write_text(json.dumps({"word_embedding_dimension": 64, "pooling_mode_lasttoken": True}))
    assert read_pooling(tmp_path) == Pooling("last", normalize=True)
    steps = ["Transformer", "Pooling"]
    modules.write_text(json.dumps([{"type": f"sentence_transformers.models.{step}"} for step in steps]))
    assert read_pooling(tmp_path) == Pooling("last", normalize=False)
    assert read_pooling(tmp_path, normalize=True) == Pooling("last", normalize=True)
    modules.write_text(json.dumps([{"type": f"sentence_transformers.models.{step}"} for step in [*steps, "Normalize"]]))
    pooling.write_text(json.dumps({"pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": False}))
    assert read_pooling(tmp_path) == Pooling("mean", normalize=True)
    pooling.write_text(json.dumps({"pooling_mode_cls_token": True}))
    with pytest.raises(UnsupportedModel, match="cls"):
        read_pooling(tmp_path)
    assert read_pooling(tmp_path, kind="last") == Pooling("last", normalize=True)
    pooling.write_text(json.dumps({"pooling_mode": "mean"}))
    modules.write_text(json.dumps([{"type": f"sentence_transformers.models.{step}"} for step in [*steps, "Dense"]]))
    with pytest.raises(UnsupportedModel, match="Dense"):
        read_pooling(tmp_path)

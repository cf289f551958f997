"""Adapters over HTTP with a real engine: named as models, loaded and unloaded while it runs, kept through a kill.

What each must say is what `transformers` says of the model that `peft` merged it into.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from penstock.catalog import resolve_model
from penstock.deployment import Deployment
from penstock.runtime import ChatTemplate, load_tokenizer
from penstock.runtime.service import Service
from penstock.serve.admin import create_admin_app
from penstock.serve.app import create_app
from penstock.testing.adapters import merged_checkpoint, tiny_adapter

from .conftest import Loop
from .sse import read_stream

PROMPT = "The river was wide and the mill"
TOKENS = 40
ADAPTERS = ("one", "two", "three")


class Adapted:
    """A server with one adapter from its deployment, a directory with more, and what each must answer."""

    def __init__(
        self, service: Service, url: str, admin: str, directory: Path, expected: dict[str, list[int]],
        vectors: dict[str, Any],
    ) -> None:  # fmt: skip
        self.service, self.directory, self.expected, self.vectors = service, directory, expected, vectors
        self.http = httpx.Client(base_url=url, timeout=60)
        self.admin = httpx.Client(base_url=admin, timeout=60)

    def body(self, model: str | None, **more: Any) -> dict[str, Any]:
        asked = {"prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
        return asked | {"return_token_ids": True} | ({} if model is None else {"model": model}) | more

    def answer(self, model: str | None, **more: Any) -> list[int]:
        reply = self.http.post("/v1/completions", json=self.body(model, **more)).json()
        assert reply["model"] == model or model is None
        ids: list[int] = reply["choices"][0]["token_ids"]
        return ids

    def load(self, name: str, path: str, **more: Any) -> httpx.Response:
        return self.admin.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": path, **more})

    def unload(self, name: str) -> httpx.Response:
        return self.admin.post("/v1/unload_lora_adapter", json={"lora_name": name})

    def models(self) -> dict[str, Any]:
        return {one["id"]: one for one in self.http.get("/v1/models").json()["data"]}


def greedy(path: Path, prompt: list[int]) -> list[int]:
    """What `transformers` says."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    ids = torch.tensor([prompt])
    made = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False, eos_token_id=None,
        pad_token_id=0,
    )  # fmt: skip
    return made[0, len(prompt) :].tolist()


def mean_state(path: Path, prompt: list[int]) -> Any:
    """Mean of the last hidden states, brought to length 1."""
    import torch
    from transformers import AutoModel

    with torch.no_grad():
        states = AutoModel.from_pretrained(path, dtype=torch.float32).eval()(torch.tensor([prompt]))[0][0]
    mean = states.mean(dim=0)
    return (mean / mean.norm()).tolist()


@pytest.fixture(scope="module")
def adapted(loop: Loop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Adapted]:
    directory = tmp_path_factory.mktemp("adapters")
    base = resolve_model("millrace")
    tokenizer = load_tokenizer(str(base))
    prompt = tokenizer.encode(PROMPT, add_special_tokens=True)
    expected = {"": greedy(base, prompt)}
    for number, name in enumerate(ADAPTERS):
        path = tiny_adapter(base, directory / name, seed=number, std=0.06, r=4 + number)
        merged = merged_checkpoint(base, path, tmp_path_factory.mktemp(name))
        expected[name] = greedy(merged, prompt)
        if name == "one":
            vectors = {"": mean_state(base, prompt), "one": mean_state(merged, prompt)}
    assert len({tuple(ids) for ids in expected.values()}) == 4
    deployment = Deployment.parse(
        {
            "model": {
                "adapters": {"one": str(directory / "one")}, "adapter_directory": str(directory),
                "max_adapters": 2, "pooling": "mean",
            },
            "hardware": {"threads": 1}, "memory": {"kv_bytes": "32MiB"}, "server": {"admin_port": 0},
        }
    )  # fmt: skip
    service = loop.run(Service.start(deployment))
    app = create_app(service, deployment, tokenizer=tokenizer, template=ChatTemplate.of(tokenizer))
    running = [loop.serve(app), loop.serve(create_admin_app(app, asyncio.Event()))]
    url, admin = (next(one) for one in running)
    yield Adapted(service, url, admin, directory, expected, vectors)
    for one in running:
        one.close()  # type: ignore[attr-defined]
    loop.run(service.close())


def test_adapters_are_models_with_a_parent_and_answer_side_by_side(adapted: Adapted) -> None:
    assert adapted.models().keys() == {"millrace", "one"}
    assert adapted.models()["one"]["parent"] == "millrace"
    assert adapted.http.get("/v1/models/one").json()["id"] == "one"
    assert adapted.load("two", "two").text == "Success: LoRA adapter 'two' added successfully."
    asked = ["", "one", "two", "one", "", "two"]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda name: adapted.answer(name or None), asked))
    assert answers == [adapted.expected[name] for name in asked]
    assert adapted.unload("two").status_code == 200
    assert adapted.models().keys() == {"millrace", "one"}
    gone = adapted.http.post("/v1/completions", json=adapted.body("two"))
    assert gone.status_code == 404
    assert gone.json()["error"]["message"].endswith("one of: millrace, one")


def test_an_adapter_answers_chats_too(adapted: Adapted) -> None:
    body = {"model": "one", "messages": [{"role": "user", "content": "Rivers?"}], "max_tokens": 4, "temperature": 0}
    reply = adapted.http.post("/v1/chat/completions", json=body).json()
    assert reply["model"] == "one"
    assert reply["usage"]["completion_tokens"] >= 1


def test_embeddings_of_the_model_and_of_an_adapter_are_hidden_states_of_transformers(adapted: Adapted) -> None:
    for name, wanted in adapted.vectors.items():
        body = {"input": [PROMPT, PROMPT], "model": name or "millrace"}
        reply = adapted.http.post("/v1/embeddings", json=body).json()
        assert reply["model"] == (name or "millrace")
        for one in reply["data"]:
            assert one["embedding"] == pytest.approx(wanted, abs=1e-5)


def test_prefixes_are_not_shared_between_adapters(adapted: Adapted) -> None:
    prompt = "Of all the mills along the river " * 6
    seen = []
    for model in (None, None, "one", "one"):
        reply = adapted.http.post("/v1/completions", json=adapted.body(model, prompt=prompt, max_tokens=2))
        seen.append(reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"])
    assert seen[0] == 0
    assert seen[1] > 0
    assert seen[2] == 0, "KV of the model itself was taken for an adapter's"
    assert seen[3] == seen[1]


def test_what_cannot_be_loaded_is_refused_and_nothing_changes(adapted: Adapted, tmp_path: Path) -> None:
    (adapted.directory / "way-out").symlink_to(tmp_path)
    (adapted.directory / "empty").mkdir()
    refused = [
        ("two", "../" + tmp_path.name, "lora_path"), ("two", str(tmp_path), "lora_path"), ("two", ".", "lora_path"),
        ("two", "way-out", "lora_path"), ("two", "nothing-there", "lora_path"), ("two", "empty", "adapter"),
        ("one", "two", "lora_name"), ("millrace", "two", "lora_name"), ("no name", "two", "lora_name"),
    ]  # fmt: skip
    for name, path, param in refused:
        reply = adapted.load(name, path)
        assert reply.status_code == 400, (name, path, reply.text)
        assert reply.json()["error"]["param"] == param
        assert str(tmp_path) not in reply.text or path == str(tmp_path)
    assert adapted.unload("two").status_code == 404
    assert adapted.admin.post("/v1/load_lora_adapter", json={"lora_name": "x"}).status_code == 400
    assert adapted.load("two", "two").status_code == 200
    full = adapted.load("three", "three")
    assert full.status_code == 400
    assert "room for 2" in full.json()["error"]["message"]
    assert adapted.unload("two").status_code == 200
    assert adapted.models().keys() == {"millrace", "one"}
    (adapted.directory / "way-out").unlink()
    assert adapted.http.post("/v1/load_lora_adapter", json={}).status_code == 404, "not on the public listener"


def test_unloading_waits_for_the_requests_that_have_it(adapted: Adapted) -> None:
    assert adapted.load("two", "two").status_code == 200
    body = adapted.body("two", max_tokens=400, stream=True)
    gone = threading.Event()

    def unload() -> int:
        status = adapted.unload("two").status_code
        gone.set()
        return status

    with ThreadPoolExecutor(1) as pool, adapted.http.stream("POST", "/v1/completions", json=body) as stream:
        lines = stream.iter_lines()
        read = [next(line for line in lines if line.startswith("data:"))]
        pid = adapted.service.worker_pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)  # so that the stream does not end meanwhile
        info = next(line for line in adapted.http.get("/metrics").text.splitlines() if "lora_requests_info{" in line)
        assert 'running_lora_adapters="two"' in info
        assert 'max_lora="2"' in info
        unloading = pool.submit(unload)
        while "two" in adapted.models():
            pass
        assert adapted.http.post("/v1/completions", json=adapted.body("two")).status_code == 404
        assert not gone.is_set(), "it was unloaded under a running request"
        os.kill(pid, signal.SIGCONT)
        read += [line for line in lines if line.startswith("data:")]
        assert unloading.result(30) == 200
    content = "".join(f"{line}\n\n" for line in read).encode()
    tokens = read_stream(content, chat=False).choices[0].token_ids
    assert tokens[:TOKENS] == adapted.expected["two"]
    assert len(tokens) == 400


def test_one_adapter_takes_anothers_name_while_requests_run(adapted: Adapted) -> None:
    assert adapted.load("now", "two").status_code == 200
    assert adapted.answer("now") == adapted.expected["two"]
    assert adapted.unload("one").status_code == 200  # there must be room for both
    body = adapted.body("now", max_tokens=200, stream=True)
    with adapted.http.stream("POST", "/v1/completions", json=body) as stream, ThreadPoolExecutor(1) as pool:
        lines = stream.iter_lines()
        read = [next(line for line in lines if line.startswith("data:"))]
        swapping = pool.submit(adapted.load, "now", "three", load_inplace=True)
        read += [line for line in lines if line.startswith("data:")]
        assert swapping.result(30).status_code == 200
    content = "".join(f"{line}\n\n" for line in read).encode()
    assert read_stream(content, chat=False).choices[0].token_ids[:TOKENS] == adapted.expected["two"]
    assert adapted.answer("now") == adapted.expected["three"]
    assert adapted.unload("now").status_code == 200
    assert adapted.load("one", "one").status_code == 200


def test_a_killed_worker_has_its_adapters_again_and_streams_go_on(adapted: Adapted) -> None:
    assert adapted.load("two", "two").status_code == 200
    before = adapted.service.restarts
    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(adapted.answer, name) for name in ("one", "two", None)]
        with adapted.http.stream("POST", "/v1/completions", json=adapted.body("two", stream=True)) as stream:
            lines = stream.iter_lines()
            read = [next(line for line in lines if line.startswith("data:"))]
            assert adapted.service.worker_pid is not None
            os.kill(adapted.service.worker_pid, signal.SIGKILL)
            read += [line for line in lines if line.startswith("data:")]
        assert [one.result(60) for one in answers] == [adapted.expected[name] for name in ("one", "two", "")]
    content = "".join(f"{line}\n\n" for line in read).encode()
    assert read_stream(content, chat=False).choices[0].token_ids == adapted.expected["two"]
    while adapted.service.restarts == before or adapted.service.state != "ready":
        time.sleep(0.01)  # it may have had nothing left to do when it was killed
    assert adapted.answer("two") == adapted.expected["two"]
    assert adapted.unload("two").status_code == 200


def test_an_adapter_whose_files_changed_is_not_loaded_again_and_its_requests_are_refused(adapted: Adapted) -> None:
    assert adapted.load("two", "two").status_code == 200
    weights = adapted.directory / "two" / "adapter_model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes((adapted.directory / "one" / "adapter_model.safetensors").read_bytes())
    before = adapted.service.restarts
    assert adapted.service.worker_pid is not None
    os.kill(adapted.service.worker_pid, signal.SIGKILL)
    while adapted.service.restarts == before or adapted.service.state != "ready":
        time.sleep(0.01)
    assert adapted.answer("one") == adapted.expected["one"]
    assert adapted.http.post("/v1/completions", json=adapted.body("two")).status_code == 404
    weights.write_bytes(kept)
    assert adapted.load("two", "two").status_code == 200
    assert adapted.answer("two") == adapted.expected["two"]

"""A checkpoint that was cut short or edited by hand is refused with its file, whatever stands in it: never a traceback.

The weights are a hole of the right size: nothing here reads one.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from penstock.catalog import resolve_model
from penstock.deployment import Deployment
from penstock.errors import BadInput, UnsupportedModel
from penstock.runtime import ChatTemplate, load_tokenizer
from penstock.runtime.fingerprint import hash_of_checkpoint
from penstock.runtime.size import size_up
from penstock.serve.sampling import make_sampling
from penstock.serve.schema import CompletionBody

SOURCE = resolve_model("millrace")
VALUES: tuple[Any, ...] = (None, 0, -1, 3, 2**70, 1.5, float("nan"), "x", "", [], {}, [1], [1, 2], {"a": 1}, True)
KEYS = (
    "architectures", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "intermediate_size", "vocab_size", "max_position_embeddings", "rms_norm_eps", "hidden_act", "rope_theta",
    "rope_scaling", "rope_parameters", "sliding_window", "layer_types", "quantization_config", "tie_word_embeddings",
)  # fmt: skip


class Model:
    """A copy of the model in the box to be damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for file in SOURCE.iterdir():
            if file.suffix != ".safetensors":
                shutil.copy(file, path / file.name)
        (weights,) = SOURCE.glob("*.safetensors")
        with weights.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            self.header: dict[str, Any] = json.loads(stream.read(length))
        self.bytes = weights.stat().st_size - 8 - length
        self.config: dict[str, Any] = json.loads((path / "config.json").read_text())
        self.write(self.header)

    def write(self, header: object, text: bytes | None = None) -> None:
        text = json.dumps(header).encode() if text is None else text
        with (self.path / "model.safetensors").open("wb") as stream:
            stream.write(struct.pack("<Q", len(text)) + text)
            stream.truncate(8 + len(text) + self.bytes)

    def configure(self, **changed: object) -> None:
        (self.path / "config.json").write_text(json.dumps(self.config | changed))

    def look(self) -> list[BadInput]:
        """What it is refused for, before anything is loaded. Any other error is a failure."""
        deployment = Deployment.load(None, {"model.path": str(self.path)})
        calls: tuple[Callable[[], object], ...] = (
            lambda: size_up(deployment), lambda: hash_of_checkpoint(self.path),
        )  # fmt: skip
        found = []
        for call in calls:
            try:
                call()
            except BadInput as error:
                found.append(error)
        return found


@pytest.fixture
def model(tmp_path: Path) -> Model:
    made = Model(tmp_path)
    assert made.look() == [], "as it is, it can be served"
    return made


@pytest.mark.parametrize("key", KEYS)
def test_whatever_a_key_of_its_config_holds_it_is_served_or_refused(model: Model, key: str) -> None:
    for value in VALUES:
        model.configure(**{key: value})
        for error in model.look():
            assert "\n" not in str(error)
            assert error.remedy


@pytest.mark.parametrize("text", ["[]", "1", "null", "{", "", "\0", '{"architectures": {"a": 1}}', "[" * 100_000])
def test_a_config_that_is_none_is_refused(model: Model, text: str) -> None:
    (model.path / "config.json").write_text(text)
    assert model.look()


@pytest.mark.parametrize("field", ["dtype", "shape", "data_offsets"])
def test_a_tensor_that_contradicts_itself_is_refused(model: Model, field: str) -> None:
    name = next(name for name in model.header if name != "__metadata__")
    entry = model.header[name]
    odd = (*VALUES, [5, 1], [-4, 4], [0, 2**62], ["a", "b"], [0, 4, 8], [1.5, 2])
    for value in odd:
        if entry[field] == value:
            continue
        model.write(model.header | {name: entry | {field: value}})
        assert any(isinstance(error, UnsupportedModel) for error in model.look()), value
    model.write(model.header | {name: {key: one for key, one in entry.items() if key != field}})
    assert model.look()


@pytest.mark.parametrize(
    "text", [b"[]", b"1", b"null", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000, b'{"a": 1}', b'{"a": null}']
)
def test_a_header_that_is_none_is_refused(model: Model, text: bytes) -> None:
    model.write(None, text)
    assert model.look()


@pytest.mark.parametrize(
    "weight_map",
    [1, [], {"a": 1}, {"a": None, "b": "x"}, {"a": ""}, {"a": "."}, {"a": "\0"}, {"a": "../../etc/passwd"}],
)
def test_an_index_that_leads_nowhere_is_refused_and_leads_to_no_other_directory(
    model: Model, weight_map: object
) -> None:
    (model.path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert model.look()
    (model.path / "model.safetensors.index.json").write_text("[" * 100_000)
    assert model.look()


TEXT_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "special_tokens_map.json")
TEXT_KEYS = ("added_tokens", "chat_template", "eos_token_id", "model", "decoder", "temperature", "eos_token")


@pytest.mark.parametrize("name", TEXT_FILES)
def test_whatever_stands_beside_the_weights_the_text_side_loads_or_is_refused(model: Model, name: str) -> None:
    file = model.path / name
    whole = json.loads(file.read_text()) if file.is_file() else {}
    changed: list[object] = [[], 1, None]
    for key in {*whole, *TEXT_KEYS}:
        changed += [whole | {key: value} for value in (None, -1, "x", {"vocab": 1}, [{"id": 1}])]
    refused = 0
    for content in changed:
        file.write_text(json.dumps(content))
        try:
            ChatTemplate.of(load_tokenizer(str(model.path)))
        except BadInput:
            refused += 1
    assert refused >= 3
    for text in ("{", "[" * 100_000, "\0"):
        file.write_text(text)
        with pytest.raises(BadInput, match="Remedy: "):
            load_tokenizer(str(model.path))


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("temperature", (-1, 1e999, float("nan")), (0, 0.6, 3)),
        ("top_p", (0, 0.0, 1.5, -1), (0.9, 1, 1.0)),
        ("top_k", (-2, float("nan")), (-1, 0, 20)),
        ("min_p", (-0.1, 2), (0, 0.05)),
        ("repetition_penalty", (0, -1), (1, 1.05)),
    ],
)
def test_sampling_that_the_checkpoint_wants_and_nobody_can_do_is_the_checkpoints_fault(
    model: Model, name: str, wrong: tuple[float, ...], right: tuple[float, ...]
) -> None:
    file = model.path / "generation_config.json"
    for value in wrong:
        file.write_text(json.dumps({name: value}))
        with pytest.raises(BadInput, match=r"generation_config\.json.*" + name):
            load_tokenizer(str(model.path))
    for value in (*right, None, True, "x"):
        file.write_text(json.dumps({name: value}))
        found = load_tokenizer(str(model.path)).sampling_defaults
        assert found == ({name: value} if value in right and value is not True else {})


def test_an_end_that_the_model_has_no_row_for_is_no_clients_fault() -> None:
    body = CompletionBody(prompt="x")
    sampling = make_sampling(body, defaults={}, eos_ids=(3, 900), vocab_size=256, max_tokens=4, logprobs=None)
    assert sampling.stop_ids == (3,)

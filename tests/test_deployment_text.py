"""The deployment file as text: what stands twice, what is no number, and errors that show no line of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.deployment import Deployment
from penstock.deployment.access import read_key_file
from penstock.deployment.yaml_text import NotYaml, read_yaml
from penstock.errors import InvalidDeployment


def refused(text: str, folder: Path) -> InvalidDeployment:
    file = folder / "deployment.yaml"
    file.write_text(text)
    with pytest.raises(InvalidDeployment) as caught:
        Deployment.load(file)
    return caught.value


@pytest.mark.parametrize(
    "text",
    [
        "server:\n  api_keys: [hunter2]\npolicy: {max_seqs: 8}\nserver:\n  port: 9000\n",
        "server: {api_keys: [hunter2], port: 1, api_keys: []}\n",
        'server: {port: 1, "port": 2}\n',
    ],
)
def test_a_key_that_stands_twice_is_an_error_with_its_place_and_does_not_take_the_first_away(
    tmp_path: Path, text: str
) -> None:
    error = refused(text, tmp_path)
    assert "stands twice" in error.why
    assert "line" in error.why
    assert "hunter2" not in str(error)


def test_a_key_that_stands_twice_in_a_key_file_is_an_error_too(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(f"keys: [{{name: a, hash: 'sha256:{'0' * 64}'}}]\nkeys: []\n")
    with pytest.raises(InvalidDeployment, match="stands twice"):
        read_key_file(str(file), order="arrival")


def test_what_is_merged_in_may_be_said_again() -> None:
    text = "late: {inner: &m {<<: &b {a: 1, b: 2}, a: 3}}\nearly: {<<: *m, b: 4}\n1: x\n'1': y\n"
    made = read_yaml(text)
    assert made == {"late": {"inner": {"a": 3, "b": 2}}, "early": {"a": 3, "b": 4}, 1: "x", "1": "y"}


@pytest.mark.parametrize(
    "text",
    [
        "server:\n  api_keys: [hunter2-hunter2\n  port: 1\n",
        "server:\n\tapi_keys: hunter2-hunter2\n",
        "server: {api_keys: [*hunter2-hunter2]}\n",
        "server: {api_keys: [!hunter2-hunter2 x]}\n",
        "server: {api_keys: [hunter2-hunter2, 2026-13-45]}\n",
        "server: {dashboard: !!bool hunter2-hunter2}\n",
        "server: {port: !!int '', api_keys: [hunter2-hunter2]}\n",
        "server: {port: !!timestamp hunter2-hunter2}\n",
        "server: {api_keys: [hunter2-hunter2]}\n---\na: 1\n",
        "server: {api_keys: [hunter2-hunter2\x07]}\n",
        "server: {api_keys: 'hunter2-hunter2\n",
        "[" * 3000,
    ],
)
def test_a_file_that_is_no_yaml_is_one_line_that_shows_none_of_it(tmp_path: Path, text: str) -> None:
    error = refused(text, tmp_path)
    assert error.field == "file"
    assert "hunter2" not in str(error)
    assert "\n" not in str(error)
    with pytest.raises(NotYaml):
        read_yaml(text)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("server: {port: yes}", "server.port"),
        ("server: {queue: {max_requests: on}}", "server.queue.max_requests"),
        ("server: {drain_timeout: true}", "server.drain_timeout"),
        ("memory: {kv_bytes: true}", "memory.kv_bytes"),
        ("model: {max_sequence_tokens: off}", "model.max_sequence_tokens"),
        ("server: {drain_timeout: .inf}", "server.drain_timeout"),
        ("server: {step_deadline: .nan}", "server.step_deadline"),
        ("memory: {watermark: .nan}", "memory.watermark"),
        ("model: {name: no}", "model.name"),
    ],
)
def test_a_yes_is_no_number_and_a_number_has_an_end(tmp_path: Path, text: str, field: str) -> None:
    error = refused(text, tmp_path)
    assert error.field == field
    assert error.exit_code == 2


def test_a_yes_where_it_belongs_is_one(tmp_path: Path) -> None:
    file = tmp_path / "deployment.yaml"
    file.write_text("server: {dashboard: off}\npolicy: {plan_ahead: no}\ntwin: {overlap_host: yes}\n")
    found = Deployment.load(file)
    assert (found.server.dashboard, found.policy.plan_ahead, found.twin.overlap_host) == (False, False, True)

"""Every key of the deployment file is a flag and an environment variable, in that order of precedence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from penstock.cli.chat import own_server
from penstock.cli.flags import environment_name, flag_name, load
from penstock.deployment import Deployment, Reader, keys, why_unread

from .conftest import Penstock


@pytest.mark.parametrize("verb", ["serve", "record", "simulate"])
def test_every_key_that_a_verb_reads_is_a_flag_in_its_help_grouped_by_section(penstock: Penstock, verb: Reader) -> None:
    text = penstock(verb, "--help", COLUMNS="200").stdout
    read = {key for key in keys() if why_unread(verb, key) is None}
    for key in keys():
        found = re.search(rf"{re.escape(flag_name(key))}\s", text)
        assert bool(found) == (key in read), key
    for section in {key.rpartition(".")[0] for key in read}:
        assert f"{section} (keys of the deployment file)" in text


def test_each_key_is_read_by_a_simulation_or_by_a_server() -> None:
    for key in keys():
        assert None in (why_unread("simulate", key), why_unread("serve", key)), key


def test_what_only_the_twin_models_may_stand_in_the_file_that_is_served(penstock: Penstock, tmp_path: Path) -> None:
    file = tmp_path / "shared.yaml"
    file.write_text("hardware: {name: h100-sxm}\nmemory: {device_share: 0.8}\nworkload: {rate: 3}\n")
    assert yaml.safe_load(penstock("serve", "-f", str(file), "--dry-run").stdout)["hardware"]["name"] == "h100-sxm"


@pytest.mark.parametrize(
    ("verb", "key", "value"),
    [
        ("serve", "hardware.name", "h100-sxm"),
        ("serve", "hardware.network", "infiniband-ndr"),
        ("serve", "memory.device_share", "0.8"),
        ("serve", "layout.tensor_parallel", "2"),
        ("serve", "workload.rate", "3"),
        ("simulate", "server.port", "9000"),
        ("simulate", "model.max_adapters", "2"),
    ],
)
def test_a_key_that_a_verb_does_not_read_is_refused_as_a_flag_and_in_the_environment(
    penstock: Penstock, verb: str, key: str, value: str
) -> None:
    reader = {"serve": "only a simulation reads it", "simulate": "only a server reads it"}[verb]
    flag = penstock(verb, flag_name(key), value, expect=2)
    variable = penstock(verb, expect=2, **{environment_name(key): value})
    for done, name in ((flag, flag_name(key)), (variable, environment_name(key))):
        assert done.stderr.startswith(f"error: {name} = {value!r}: {reader}. Remedy: leave it out, or give it to")


@pytest.mark.parametrize(
    ("verb", "key", "why"),
    [
        ("chat", "workload.rate", "only a simulation reads it"),
        ("chat", "server.port", "its server answers this terminal alone"),
        ("chat", "server.api_keys", "its server answers this terminal alone"),
        ("doctor", "cluster.replicas", "only a simulation reads it"),
    ],
)
def test_a_verb_without_flags_for_keys_refuses_what_it_does_not_read_in_the_environment(
    penstock: Penstock, verb: str, key: str, why: str
) -> None:
    done = penstock(verb, expect=2, **{environment_name(key): "3"})
    assert done.stderr.startswith(f"error: {environment_name(key)} = ")
    assert f": {why}. Remedy: leave it out, or give it to" in done.stderr


def test_a_chat_reads_what_its_server_needs_whatever_the_file_says_of_clients(tmp_path: Path) -> None:
    file = tmp_path / "public.yaml"
    file.write_text(
        "model: {adapter_directory: adapters, max_adapters: 3}\n"
        "server: {host: 0.0.0.0, allow_public_without_key: true, admin_port: 9000}\n"
    )
    own = own_server(load(file, None, reader="chat"))
    assert (own.server.host, own.server.locked, own.model.max_adapters) == ("127.0.0.1", False, 3)


def test_a_verb_that_has_no_use_for_keys_of_clients_does_not_print_them(penstock: Penstock) -> None:
    done = penstock("simulate", expect=2, PENSTOCK_SERVER__API_KEYS="hunter2")
    assert "PENSTOCK_SERVER__API_KEYS" in done.stderr
    assert "hunter2" not in done.stderr


def test_the_dry_run_prints_a_file_that_loads_as_the_same_deployment(penstock: Penstock, tmp_path: Path) -> None:
    printed = penstock("serve", "--dry-run", "--policy.max-seqs", "8", "--memory.kv-bytes", "2MiB").stdout
    file = tmp_path / "deployment.yaml"
    file.write_text(printed)
    assert Deployment.load(file) == Deployment.load(None, {"policy.max_seqs": 8, "memory.kv_bytes": 2 * 2**20})


def test_a_flag_wins_over_the_environment_and_that_over_the_file(penstock: Penstock, tmp_path: Path) -> None:
    file = tmp_path / "deployment.yaml"
    file.write_text("policy: {max_seqs: 1, token_budget: 100}\nserver: {port: 1, drain_timeout: 5s}\n")
    environment = {environment_name("policy.max_seqs"): "2", environment_name("server.port"): "2"}
    printed = penstock("serve", "-f", str(file), "--dry-run", "--policy.max-seqs", "3", **environment).stdout
    found = yaml.safe_load(printed)
    assert found["policy"]["max_seqs"] == 3
    assert found["server"]["port"] == 2
    assert found["server"]["drain_timeout"] == 5.0
    assert found["policy"]["token_budget"] == 100


def test_the_argument_names_the_model(penstock: Penstock) -> None:
    assert yaml.safe_load(penstock("serve", "/some/where", "--dry-run").stdout)["model"]["path"] == "/some/where"


def test_truth_values_and_lists_are_written_as_in_the_file(penstock: Penstock) -> None:
    printed = penstock("serve", "--dry-run", "--policy.plan-ahead", "false", "--server.api-keys", "one,two").stdout
    found = yaml.safe_load(printed)
    assert found["policy"]["plan_ahead"] is False
    assert len(found["server"]["api_keys"]) == 2


def test_keys_of_clients_are_never_printed(penstock: Penstock) -> None:
    done = penstock("serve", "--dry-run", PENSTOCK_SERVER__API_KEYS="hunter2")
    assert "hunter2" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "environment", "named"),
    [
        (("--policy.token-budget", "many"), {}, "policy.token_budget"),
        (("--server.host", "0.0.0.0"), {}, "server.host"),
        (("-f", "/nonexistent.yaml"), {}, "file"),
        ((), {"PENSTOCK_POLICY__TOKENS": "1"}, "PENSTOCK_POLICY__TOKENS"),
        (("--policy.tokens", "1"), {}, "--policy.tokens"),
    ],
)
def test_a_wrong_setting_is_one_line_with_its_name_and_exit_code_2(
    penstock: Penstock, arguments: tuple[str, ...], environment: dict[str, str], named: str
) -> None:
    done = penstock("serve", *arguments, "--dry-run", expect=2, **environment)
    assert named in done.stderr
    assert "Traceback" not in done.stderr
    if done.stderr.startswith("error:"):
        assert done.stderr.count("\n") == 1
        assert "Remedy:" in done.stderr

"""The deployment file: defaults for everything, errors that name the key, the value and the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from penstock.deployment import Deployment, keys, merge, overlaid
from penstock.errors import InvalidDeployment


def test_an_empty_file_is_a_whole_deployment(tmp_path: Path) -> None:
    file = tmp_path / "empty.yaml"
    file.write_text("")
    assert Deployment.load(file) == Deployment.load() == Deployment()


def test_what_is_written_out_reads_back_the_same(tmp_path: Path) -> None:
    file = tmp_path / "all.yaml"
    first = Deployment.load(None, {"policy.token_budget": 300, "memory.kv_bytes": "1GiB", "server.drain_timeout": "5s"})
    file.write_text(first.to_yaml())
    assert Deployment.load(file) == first


def test_an_override_wins_over_the_file_and_leaves_its_neighbours(tmp_path: Path) -> None:
    file = tmp_path / "some.yaml"
    file.write_text("policy: {token_budget: 200, max_seqs: 50}")
    policy = Deployment.load(file, {"policy.token_budget": 400}).policy
    assert (policy.token_budget, policy.max_seqs) == (400, 50)


@pytest.mark.parametrize(
    ("given", "field", "remedy"),
    [
        ({"policy": {"tokn": 3}}, "policy.tokn", "policy.token_budget"),
        ({"polcy": {}}, "polcy", "policy"),
        ({"memory": {"kv_bytes": "3x"}}, "memory.kv_bytes", "KV blocks"),
        ({"memory": {"watermark": 1.5}}, "memory.watermark", "admitted"),
        ({"policy": {"evict": "swap"}}, "memory.host_bytes", "256MiB"),
        ({"memory": {"host_bytes": "1GiB"}}, "memory.host_bytes", "swap"),
        ({"server": {"host": "0.0.0.0"}}, "server.host", "api_keys"),
        ({"policy": {"token_budget": 64}}, "policy.token_budget", "129"),
        ({"policy": {"ageing_s": 5}}, "policy.ageing_s", "shortest"),
        ({"memory": {"kind": "reserved", "watermark": 0.2}}, "memory.watermark", "paged"),
        ({"memory": {"kind": "paged", "evict_idle": "lru"}}, "memory.evict_idle", "prefix_tree"),
        ({"policy": {"evict": "swap"}, "memory": {"kind": "reserved", "host_bytes": 1024}}, "policy.evict", "paged"),
        ({"policy": {"name": "orca", "compose": "stall_free"}}, "policy.name", "compose"),
        ({"policy": {"order": "priority", "ageing_s": ".inf"}}, "policy.ageing_s", "priority"),
        ({"server": {"host": "127.evil.example.com"}}, "server.host", "api_keys"),
        ({"server": {"api_keys": [" "]}}, "server.api_keys.0", "docs"),
        ({"server": {"allow_public_without_key": True}}, "server.allow_public_without_key", "0.0.0.0"),
    ],
)
def test_a_mistake_is_named_with_its_remedy(given: dict[str, object], field: str, remedy: str) -> None:
    with pytest.raises(InvalidDeployment) as caught:
        Deployment.parse(given)
    assert caught.value.field == field
    assert remedy in caught.value.remedy
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "just words"])
def test_a_file_that_is_no_mapping_is_refused_by_name(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(InvalidDeployment, match=r"bad\.yaml"):
        Deployment.load(file)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidDeployment, match=r"nowhere\.yaml"):
        Deployment.load(tmp_path / "nowhere.yaml")


def test_counts_of_a_workload_are_written_with_units() -> None:
    given = {"law": "closed", "requests": "25k", "concurrency": "0.1k", "tenants": "1Ki", "priorities": "2"}
    found = Deployment.parse({"workload": given}).workload
    assert (found.requests, found.concurrency, found.tenants, found.priorities) == (25_000, 100, 1024, 2)
    with pytest.raises(InvalidDeployment) as caught:
        Deployment.parse({"workload": {"concurrency": "many"}})
    assert caught.value.why == "'many' is not a count or size; write 4096, 25k, 32Ki, 2GiB"


def test_a_law_of_one_number_needs_no_quotes() -> None:
    given = {"law": "sessions", "prompt_tokens": 512, "output_tokens": 64, "turns": 3, "think": 1.5}
    found = Deployment.parse({"workload": given}).workload
    assert (found.prompt_tokens, found.output_tokens, found.turns, found.think) == ("512", "64", "3", "1.5")


@pytest.mark.parametrize("key", ["prompt_tokens", "output_tokens"])
def test_lengths_beside_a_trace_or_said_over_one_are_refused(tmp_path: Path, key: str) -> None:
    beside, alone = tmp_path / "beside.yaml", tmp_path / "alone.yaml"
    beside.write_text(f"workload: {{trace: azure.csv, {key}: 64}}")
    alone.write_text("workload: {trace: azure.csv}")
    both = {"workload.trace": "azure.csv", f"workload.{key}": "64"}
    for file, over in ((beside, {}), (alone, {f"workload.{key}": "64"}), (None, both), (alone, both)):
        with pytest.raises(InvalidDeployment, match="a trace has its own lengths") as caught:
            Deployment.load(file, over)
        assert caught.value.field == f"workload.{key}"


def test_a_trace_that_is_named_over_lengths_takes_their_place(tmp_path: Path) -> None:
    file = tmp_path / "lengths.yaml"
    file.write_text("workload: {prompt_tokens: 64, output_tokens: 8, rate: 2}")
    found = Deployment.load(file, {}, {"workload.trace": "azure.csv"})
    assert (found.workload.trace, found.workload.rate) == ("azure.csv", 2)
    again = tmp_path / "resolved.yaml"
    again.write_text(found.to_yaml())
    assert Deployment.load(again) == found
    # Lengths in the environment, the trace as a flag.
    assert Deployment.load(None, {"workload.output_tokens": "8"}, {"workload.trace": "azure.csv"}) != Deployment()
    # And without the trace again they must be said anew.
    plain = overlaid({"workload": {"trace": "azure.csv"}}, {"workload.trace": None, "workload.output_tokens": "8"})
    assert Deployment.parse(plain).workload.output_tokens == "8"


def test_merging_changes_neither_side() -> None:
    base = {"a": {"b": 1}}
    assert merge(base, {"a.c": 2, "d.e": 3}) == {"a": {"b": 1, "c": 2}, "d": {"e": 3}}
    assert base == {"a": {"b": 1}}


def test_every_key_has_a_description_and_reaches_the_resolved_file() -> None:
    resolved = yaml.safe_load(Deployment().to_yaml())
    for name, (_, _, description) in keys().items():
        assert description, name
        value = resolved
        for part in name.split("."):
            assert part in value, name
            value = value[part]


def test_a_wrong_key_is_never_printed() -> None:
    with pytest.raises(InvalidDeployment) as caught:
        Deployment.parse({"server": {"api_keys": "sk-secret"}})
    assert "sk-secret" not in str(caught.value)


def test_a_section_with_all_keys_commented_out_is_empty(tmp_path: Path) -> None:
    file = tmp_path / "commented.yaml"
    file.write_text("policy:\n  # token_budget: 3\n")
    assert Deployment.load(file) == Deployment()


def test_a_value_where_a_section_belongs_is_refused_also_under_an_override(tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text("policy: 5")
    with pytest.raises(InvalidDeployment, match="section"):
        Deployment.load(file, {"policy.max_seqs": 3})


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.9", "::1", "0:0:0:0:0:0:0:1"])
def test_loopback_needs_no_key(host: str) -> None:
    assert Deployment.parse({"server": {"host": host}}).server.host == host

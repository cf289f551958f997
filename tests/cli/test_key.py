"""`penstock key`: what it prints is what the deployment takes, and the key is nowhere but in front of the user."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import yaml

from penstock.deployment import Deployment

from .conftest import Penstock


def test_a_new_key_and_the_lines_for_the_file_fit_together(penstock: Penstock) -> None:
    done = penstock("key", "new", "--name", "alice", "--scope", "inference", "--scope", "metrics", "--tenant", "house")
    text, _, lines = done.stdout.partition("\n")
    entries = yaml.safe_load(lines)
    assert text.startswith("pk-")
    assert len(text) > 40
    assert entries[0]["hash"] == f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
    (key,) = Deployment.parse({"server": {"keys": entries}}).server.keys
    assert (key.name, key.owner, key.scopes) == ("alice", "house", ("inference", "metrics"))
    assert text not in done.stderr


def test_no_two_keys_are_the_same_and_json_is_for_programs(penstock: Penstock) -> None:
    made = [json.loads(penstock("key", "new", "--json").stdout) for _ in range(2)]
    assert made[0]["key"] != made[1]["key"]
    assert all(one["entry"]["scopes"] == ["inference"] for one in made)


def test_the_hash_of_a_key_is_read_from_standard_input_and_never_from_an_argument(penstock: Penstock) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "penstock", "key", "hash"], input="hello\n", capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == f"sha256:{hashlib.sha256(b'hello').hexdigest()}"
    assert penstock("key", "hash", "hello", expect=2).returncode == 2


def test_a_wrong_scope_or_name_is_one_line_with_exit_code_2(penstock: Penstock) -> None:
    for arguments in (("--scope", "root"), ("--name", "a b")):
        done = penstock("key", "new", *arguments, expect=2)
        assert "Remedy" in done.stderr
        assert "pk-" not in done.stdout + done.stderr

"""`penstock doctor` looks at who may come in: keys, certificate, address, before a server is started with them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from penstock.cli import doctor_checks
from penstock.deployment import Deployment


def found(server: dict[str, Any], check: str = "_access") -> list[tuple[str, str, str]]:
    """Name, status and everything that is said, of each finding."""
    look = getattr(doctor_checks, check)
    said = list(look(Deployment.parse({"server": server})))
    return [(one.name, one.status, f"{one.value} {one.remedy}") for one in said]


def test_keys_are_counted_and_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    digest = hashlib.sha256(b"hunter2").hexdigest()
    file.write_text(f"keys: [{{name: a, hash: 'sha256:{digest}'}}]\n")
    ((name, status, said),) = found({"key_file": str(file), "api_keys": ["hunter2-plain"]})
    assert (name, status) == ("keys", "ok")
    assert said.startswith("2 known")
    assert "hunter2" not in said
    assert digest not in said


@pytest.mark.parametrize(
    ("server", "status", "words"),
    [
        ({}, "ok", "every program on this machine"),
        ({"host": "0.0.0.0", "allow_public_without_key": True}, "warning", "open to everyone"),
    ],
)
def test_an_open_server_is_told_as_what_it_is(server: dict[str, Any], status: str, words: str) -> None:
    ((_, seen, said),) = found(server)
    assert seen == status
    assert words in said


def test_what_cannot_be_read_is_missing_with_its_remedy(tmp_path: Path) -> None:
    empty = tmp_path / "empty.yaml"
    empty.write_text("")
    assert found({"key_file": str(empty)})[0][:2] == ("keys", "warning")
    ((name, status, said),) = found({"key_file": str(tmp_path / "none.yaml")})
    assert (name, status) == ("server.key_file", "missing")
    assert "readable YAML" in said
    _, (name, status, said) = found({"tls_certificate": "/no/cert.pem", "tls_key": "/no/key.pem"})
    assert (name, status) == ("server.tls_certificate", "missing")
    assert "/no/cert.pem" in said


def test_an_address_of_another_machine_is_missing() -> None:
    ((name, status, said),) = found({"host": "192.0.2.1", "api_keys": ["x"]}, "_port")
    assert (name, status) == ("address", "missing")
    assert "192.0.2.1" in said

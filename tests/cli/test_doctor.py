"""`penstock doctor` says what a bug report needs, and its exit code says whether something needed is missing."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest
from typer.testing import CliRunner

from penstock.cli import doctor_checks
from penstock.cli.doctor_checks import Finding
from penstock.deployment import Deployment

from .conftest import Penstock


def report(penstock: Penstock, *arguments: str) -> tuple[int, dict[tuple[str, str], dict[str, Any]]]:
    done = penstock("doctor", "--json", *arguments, expect=1 if arguments else 0)
    found = json.loads(done.stdout)
    assert found["ok"] == (done.returncode == 0)
    return done.returncode, {(one["subject"], one["name"]): one for one in found["findings"]}


def test_the_model_in_the_box_runs_a_token_and_everything_needed_is_there(penstock: Penstock) -> None:
    code, found = report(penstock)
    assert code == 0
    assert found["model", "one token"]["status"] == "ok"
    assert found["versions", "torch"]["value"][0].isdigit()
    assert found["machine", "memory available"]["value"].endswith("iB")
    for subject in ("machine", "limits", "network", "extras", "compiled", "devices"):
        assert any(name == subject for name, _ in found), subject
    assert {one["status"] for one in found.values()} <= {"ok", "warning", "absent"}


def test_a_model_that_is_not_there_is_a_failure_with_its_cause(penstock: Penstock) -> None:
    code, found = report(penstock, "/no/such/model")
    assert code == 1
    assert found["model", "/no/such/model"]["status"] == "missing"
    assert "no such directory" in found["model", "/no/such/model"]["value"]


def only(subject: str, deployment: Deployment | None = None) -> list[Finding]:
    check = {"versions": doctor_checks._versions, "network": doctor_checks._port, "extras": doctor_checks._extras}
    return list(check[subject](deployment or Deployment()))


def test_a_package_that_is_missing_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["no-such-package>=2", 'no-other-package>=1; extra == "strange"', 'msgspec>=0; extra == "usual"']
    monkeypatch.setattr(doctor_checks, "requires", lambda name: wanted)
    (missing,) = (one for one in only("versions") if one.status == "missing")
    assert (missing.name, missing.remedy) == ("no-such-package", "pip install 'no-such-package>=2'")
    strange, usual = only("extras")
    assert (strange.status, strange.remedy) == ("absent", "pip install 'penstock[strange]' (no-other-package)")
    assert usual.status == "ok"


def test_every_extra_says_what_it_gives() -> None:
    for one in only("extras"):
        assert one.name in doctor_checks.EXTRAS, f"{one.name} is not in EXTRAS"


def test_a_port_that_is_taken_is_a_warning() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        (found,) = only("network", Deployment.parse({"server": {"port": port}}))
    assert found.status == "warning"
    assert "--server.port" in found.remedy


def test_the_table_ends_with_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    import typer

    from penstock.cli.doctor import doctor

    def found(deployment: Deployment) -> list[Finding]:
        return [Finding("model", "one token", "missing", "none came", "report [it]")]

    monkeypatch.setattr(doctor_checks, "findings", found)
    app = typer.Typer()
    app.command()(doctor)
    done = CliRunner().invoke(app, [])
    assert done.exit_code == 1
    assert "report [it]" in done.stdout
    assert done.stdout.rstrip().endswith("missing: one token")
    assert "\x1b" not in done.stdout

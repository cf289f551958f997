"""A variable that begins with PENSTOCK_ is read, refused because it is nearly one that is, or told: never dropped."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import penstock as package
from penstock.cli import VERBS
from penstock.cli.environment import SWITCHES, environment_name, unknown_names
from penstock.compiled import SWITCH
from penstock.deployment import keys
from penstock.errors import InvalidDeployment

from .conftest import Penstock


def unknown(name: str, value: str = "1", verb: str = "serve", flags: tuple[str, ...] = ()) -> dict[str, str]:
    return unknown_names({name: value, "PATH": "/bin"}, verb, VERBS, flags)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("PENSTOCK_POLICY_MAX_SEQS", "PENSTOCK_POLICY__MAX_SEQS"),
        ("PENSTOCK_POLICY__MAX_SEQ", "PENSTOCK_POLICY__MAX_SEQS"),
        ("PENSTOCK_SERVER_PORT", "PENSTOCK_SERVER__PORT"),
        ("PENSTOCK_SERVER_QUEUE_MAX_REQUESTS", "PENSTOCK_SERVER__QUEUE__MAX_REQUESTS"),
        ("PENSTOCK_MODEL_PTH", "PENSTOCK_MODEL__PATH"),
        ("PENSTOCK_HARDWARE_DIRS", "PENSTOCK_HARDWARE_DIR"),
        ("PENSTOCK_COMPILE", "PENSTOCK_COMPILED"),
    ],
)
def test_a_name_that_is_nearly_one_of_ours_is_refused_and_the_right_one_named(name: str, meant: str) -> None:
    with pytest.raises(InvalidDeployment) as caught:
        unknown(name)
    assert caught.value.field == name
    assert caught.value.remedy == f"{meant}, or unset it"


def test_a_name_of_two_underscores_is_a_key_or_an_error() -> None:
    with pytest.raises(InvalidDeployment):
        unknown("PENSTOCK_ANYTHING__ELSE")


def test_a_verb_knows_its_own_flags_and_leaves_those_of_others_alone() -> None:
    flags = ("PENSTOCK_BENCH_RATE",)
    assert unknown("PENSTOCK_BENCH_RATE", verb="bench", flags=flags) == {}
    assert unknown("PENSTOCK_BENCH_RAT", verb="serve") == {}
    with pytest.raises(InvalidDeployment, match="PENSTOCK_BENCH_RATE, or unset it"):
        unknown("PENSTOCK_BENCH_RAT", verb="bench", flags=flags)


@pytest.mark.parametrize("name", ["PENSTOCK_TEAM_CHANNEL", "PENSTOCK_UI_THEME", "PENSTOCK_SERVER_URL"])
def test_a_name_that_resembles_none_may_be_another_programs(name: str) -> None:
    assert unknown(name).keys() == {name}


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("PENSTOCK_PORT", "PENSTOCK_SERVER__PORT"),
        ("PENSTOCK_MAX_SEQS", "PENSTOCK_POLICY__MAX_SEQS"),
        ("PENSTOCK_HARDWARE_DIRECTORY", "PENSTOCK_HARDWARE_DIR"),
    ],
)
def test_the_nearest_name_is_told_with_one_that_is_not_ours(name: str, nearest: str) -> None:
    assert unknown(name, "8000") == {name: nearest}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PENSTOCK_SERVICE_HOST", "10.0.0.1"),
        ("PENSTOCK_SERVICE_PORT", "8000"),
        ("PENSTOCK_SERVICE_PORT_HTTP", "8000"),
        ("PENSTOCK_PORT", "tcp://10.0.0.1:8000"),
        ("PENSTOCK_PORT_8000_TCP", "tcp://10.0.0.1:8000"),
        ("PENSTOCK_PORT_8000_TCP_PROTO", "tcp"),
        ("PENSTOCK_PORT_8000_TCP_PORT", "8000"),
        ("PENSTOCK_PORT_8000_TCP_ADDR", "10.0.0.1"),
        ("PENSTOCK_SERVER_PORT", "tcp://10.0.0.1:8000"),
        ("PENSTOCK_SERVER_SERVICE_HOST", "10.0.0.1"),
    ],
)
def test_what_kubernetes_sets_for_a_service_of_our_name_is_passed_over(name: str, value: str) -> None:
    assert unknown(name, value) == {}


def test_every_key_and_every_switch_is_known() -> None:
    for name in (*map(environment_name, keys()), *SWITCHES):
        assert unknown(name) == {}, name


def test_every_switch_that_the_code_reads_is_listed_and_documented() -> None:
    reads = re.compile(r"(?:environ\.get\(|environ\[|getenv\(|envvar=)\s*\"(PENSTOCK_\w+)\"")
    sources = Path(package.__file__).parent.rglob("*.py")
    found = {name for file in sources for name in reads.findall(file.read_text(encoding="utf-8"))} | {SWITCH}
    assert found == SWITCHES.keys() - {"PENSTOCK_OPTIONS"}  # that one is the flag --options
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    assert all(name in page for name in found)


def test_the_program_ends_with_2_or_goes_on_with_a_line_on_stderr(penstock: Penstock) -> None:
    done = penstock("serve", "--dry-run", expect=2, PENSTOCK_POLICY_MAX_SEQS="8")
    assert done.stderr.startswith("error: PENSTOCK_POLICY_MAX_SEQS = '...': ")
    assert "Remedy: PENSTOCK_POLICY__MAX_SEQS" in done.stderr
    done = penstock("version", PENSTOCK_TEAM_CHANNEL="#serving")
    assert done.stderr == "warning: in the environment, and no setting of ours: PENSTOCK_TEAM_CHANNEL\n"
    assert done.stdout
    assert "--policy.max-seqs" in penstock("serve", "--help", PENSTOCK_POLICY_MAX_SEQS="8").stdout

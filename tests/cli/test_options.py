"""Checklist section 12: flags from a file and the environment, units, plain pipes, completion, errors in one line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from penstock.cli import VERBS
from penstock.cli.console import show_unexpected

from .conftest import Penstock

UNREACHABLE = "http://127.0.0.1:1"


def test_flags_of_any_verb_come_from_a_file_the_environment_or_the_command_line_in_that_order(
    penstock: Penstock, tmp_path: Path
) -> None:
    file = tmp_path / "options.yaml"
    file.write_text('bench: {url: "http://127.0.0.1:1", rate: 4, find-capacity: true}\nmetrics: {alerts: true}\n')
    assert penstock("--options", str(file), "metrics").stdout.startswith("groups:")
    done = penstock("--options", str(file), "bench", "--concurrency", "2", expect=2)
    assert "--rate sets the pace already" in done.stderr  # so the file's rate was read
    done = penstock("--options", str(file), "bench", expect=2, PENSTOCK_BENCH_RATE="no number")
    assert "'no number'" in done.stderr
    penstock("--options", str(file), "bench", "--rate", "2", expect=1, PENSTOCK_BENCH_RATE="no number")


@pytest.mark.parametrize(
    ("text", "named"),
    [("bench: {rates_of: 4}", "bench.rates_of"), ("bank: {}", "bank"), ("[1]", "--options"), ("bench: 4", "--options")],
)
def test_an_options_file_that_names_nothing_is_an_error(
    penstock: Penstock, tmp_path: Path, text: str, named: str
) -> None:
    file = tmp_path / "options.yaml"
    file.write_text(text)
    done = penstock("--options", str(file), "bench", "--url", UNREACHABLE, expect=2)
    assert named in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Remedy:" in done.stderr


def test_the_help_shows_the_name_in_the_environment_of_every_flag(penstock: Penstock) -> None:
    text = re.sub(r"[\s│]+", " ", penstock("serve", "--help", COLUMNS="300").stdout)
    assert "[env var: PENSTOCK_POLICY__TOKEN_BUDGET]" in text
    assert "PENSTOCK_SERVE_POLICY" not in text
    assert "[env var: PENSTOCK_BENCH_RATE]" in re.sub(r"[\s│]+", " ", penstock("bench", "--help", COLUMNS="300").stdout)


def test_sizes_counts_and_times_are_written_as_people_write_them(penstock: Penstock) -> None:
    flags = {
        "--memory.kv-bytes": "2GiB", "--policy.token-budget": "25k", "--server.max-body-bytes": "32Ki",
        "--server.drain-timeout": "500ms", "--server.step-deadline": "2min",
    }  # fmt: skip
    found = yaml.safe_load(penstock("serve", "--dry-run", *[part for pair in flags.items() for part in pair]).stdout)
    assert found["memory"]["kv_bytes"] == 2 * 2**30
    assert found["policy"]["token_budget"] == 25_000
    assert found["server"]["max_body_bytes"] == 32 * 1024
    assert (found["server"]["drain_timeout"], found["server"]["step_deadline"]) == (0.5, 120.0)


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1", "TERM": "xterm-256color"}])
def test_a_pipe_and_no_color_get_plain_lines(penstock: Penstock, environment: dict[str, str]) -> None:
    for arguments, code in ((("version",), 0), (("serve", "/nowhere", "--dry-run", "--server.port", "x"), 2)):
        done = penstock(*arguments, expect=code, **environment)
        assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_completes_verbs_and_flags(penstock: Penstock, shell: str) -> None:
    assert "penstock" in penstock("--show-completion", shell, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1").stdout
    if shell == "bash":
        done = penstock(_PENSTOCK_COMPLETE="complete_bash", COMP_WORDS="penstock ", COMP_CWORD="1")
        assert set(done.stdout.split()) == set(VERBS)
        done = penstock(_PENSTOCK_COMPLETE="complete_bash", COMP_WORDS="penstock serve --policy.max", COMP_CWORD="2")
        assert done.stdout.split() == ["--policy.max-seqs"]
        done = penstock(_PENSTOCK_COMPLETE="complete_bash", COMP_WORDS="penstock serve --hardware.", COMP_CWORD="2")
        assert done.stdout.split() == ["--hardware.device", "--hardware.threads"]  # those that a server reads


def test_an_error_nobody_foresaw_is_one_line_and_its_traceback_a_private_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        raise KeyError("a\nb")
    except KeyError as error:
        show_unexpected(error)
    told = capsys.readouterr().err
    assert told.startswith("error: KeyError: ")
    assert told.count("\n") == 1
    assert "penstock doctor" in told
    file = tmp_path / "penstock" / "last-error.txt"
    assert "Traceback" in file.read_text()
    assert file.stat().st_mode & 0o077 == 0

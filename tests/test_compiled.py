"""Compiled code is used only when it was made from these very sources, and only from the user's own directory."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from penstock import compiled
from penstock.compiled import MODULES, SEEN, SWITCH, WHOLE, build, name_for, source

LIST_FINDERS = "import sys, penstock; print([type(finder).__name__ for finder in sys.meta_path])"
WHERE = "import penstock.control.replica as r, penstock.compiled as c; print(r.__file__, c.in_use())"


def child(code: str, **environment: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=True
    ).stdout


def test_all_that_compiled_modules_import_counts_in_the_hash() -> None:
    imported = set()
    for name in MODULES:
        for node in ast.walk(ast.parse(source(name).read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("penstock"):
                imported.add(node.module)
            elif isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names if alias.name.startswith("penstock")}
    assert imported <= set(MODULES) | set(SEEN)


@pytest.mark.parametrize("changed", ["penstock.control.replica", "penstock.errors"])
def test_a_changed_source_has_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str) -> None:
    room = tmp_path / "penstock"
    for name in MODULES + SEEN:
        copy = room.joinpath(*name.split(".")[1:]).with_suffix(".py")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source(name), copy)
    here = name_for("1.0")
    monkeypatch.setattr(compiled, "ROOM", room)
    assert name_for("1.0") == here
    source(changed).write_text(source(changed).read_text() + "\n")
    assert name_for("1.0") != here
    assert name_for("1.0").startswith("1.0-")


def test_an_edit_while_the_sources_are_copied_is_compiled_under_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room, edited = tmp_path / "penstock", source("penstock.control.step").relative_to(compiled.ROOM)
    for name in MODULES + SEEN:
        copy = source(name, room)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source(name), copy)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(compiled, "ROOM", room)
    monkeypatch.setattr(build, "ROOM", room)
    before, texts = name_for(metadata.version("mypy")), []

    def copytree(here: Path, *words: Any, **named: Any) -> Any:  # It calls itself for what lies below.
        if here == room:
            (room / edited).write_text((room / edited).read_text() + "\n")
        return real(here, *words, **named)

    def compile_nothing(copy: Path, made: Path) -> Path:
        texts.append((copy / edited).read_text())
        made.mkdir()
        (made / WHOLE).touch()
        return made

    real = shutil.copytree
    monkeypatch.setattr(shutil, "copytree", copytree)
    monkeypatch.setattr(build, "_compile", compile_nothing)
    made = build.build()
    assert texts == [(room / edited).read_text()]
    assert made.name == name_for(metadata.version("mypy")) != before


def test_switched_off_there_is_no_finder() -> None:
    assert "CompiledFinder" in child(LIST_FINDERS, **{SWITCH: "1"})
    assert "CompiledFinder" not in child(LIST_FINDERS, **{SWITCH: "0"})


def test_with_nothing_compiled_the_files_themselves_run(tmp_path: Path) -> None:
    (tmp_path / "penstock" / "compiled" / "9.9-stale").mkdir(parents=True)
    (tmp_path / "penstock" / "compiled" / "9.9-stale" / WHOLE).touch()
    assert child(WHERE, XDG_CACHE_HOME=str(tmp_path), **{SWITCH: "1"}).split() == [
        str(source("penstock.control.replica")), "False"
    ]  # fmt: skip


def test_a_directory_that_others_may_write_to_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compiled.cache() is None
    kept = compiled.cache(create=True)
    assert kept is not None
    kept.chmod(0o777)
    assert compiled.cache() is None


def test_without_mypy_it_says_so_and_does_not_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert build.main() == 0
    assert "run as Python, slower: mypy is not installed" in capsys.readouterr().out

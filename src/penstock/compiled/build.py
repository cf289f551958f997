"""Compiles the hot modules with mypyc, unless it is done already: a minute on one core.

    python -m penstock.compiled.build

It needs mypy, setuptools and a C compiler. Where one is missing it says so and nothing else changes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Final

from penstock.compiled import FLAGS, GROUP, LIBRARY, MODULES, ROOM, SUFFIX, SWITCH, WHOLE, cache, name_for, source

_TIMEOUT_S: Final = 900
_KEPT: Final = 4
_SCRIPT: Final = """
import sys
from mypyc.build import mypycify
from setuptools import setup
options = ["--config-file=", "--follow-imports=silent", "--ignore-missing-imports"]
extensions = mypycify([*options, *sys.argv[2:]], opt_level="3", group_name=sys.argv[1])
setup(name=sys.argv[1], packages=[], script_args=["build_ext", "--inplace"], ext_modules=extensions)
"""


class CannotCompile(Exception):
    """Why there is no compiled code; everything works without it."""


def build() -> Path:
    """Compile, or find compiled. Returns the directory. Raises CannotCompile."""
    try:
        version = metadata.version("mypy")
        metadata.version("setuptools")
    except metadata.PackageNotFoundError as error:
        raise CannotCompile(f"{error.name} is not installed; pip install 'penstock[dev]' brings it") from None
    kept = cache(create=True)
    if kept is None:
        raise CannotCompile("there is no directory of the user's own to keep it in")
    try:
        final = kept / name_for(version)
        if not (final / WHOLE).is_file():
            with tempfile.TemporaryDirectory(dir=kept, prefix="build-") as folder:
                copy = _copy(Path(folder))
                final = kept / name_for(version, copy)
                _move(_compile(copy, Path(folder) / "made"), final)
            _forget_old(kept)
    except OSError as error:
        raise CannotCompile(str(error)) from None
    return final


def _copy(folder: Path) -> Path:
    """The package, copied. The copy is what is hashed and compiled: sources may be edited at any moment meanwhile."""
    copy = folder / "tree" / ROOM.name
    shutil.copytree(ROOM, copy, ignore=shutil.ignore_patterns("__pycache__", "models", "hardware"))
    return copy


def _compile(room: Path, made: Path) -> Path:
    """Build all libraries of the package at `room`. Returns `made`, where each lies under its module's full name."""
    tree = room.parent
    files = [str(source(name, room).relative_to(tree)) for name in MODULES]
    environment = os.environ | {"CFLAGS": f"{os.environ.get('CFLAGS', '')} {FLAGS}", SWITCH: "0"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _SCRIPT, GROUP, *files], cwd=tree, env=environment, capture_output=True, text=True,
            timeout=_TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise CannotCompile(f"it took longer than {_TIMEOUT_S} s") from None
    if done.returncode:
        raise CannotCompile("mypyc or the C compiler failed:\n" + (done.stdout + done.stderr).strip()[-2000:])
    made.mkdir()
    for name in (LIBRARY, *MODULES):
        shutil.move(tree.joinpath(*name.split(".")).with_name(name.rpartition(".")[2] + SUFFIX), made / (name + SUFFIX))
    (made / WHOLE).touch()
    return made


def _move(made: Path, final: Path) -> None:
    try:
        os.replace(made, final)
    except OSError:
        # Another process was faster; what it made is the same.
        if not (final / WHOLE).is_file():
            raise


def _forget_old(kept: Path) -> None:
    """Keep the newest builds: of this checkout, and of others that are in use."""
    builds = [path for path in kept.iterdir() if (path / WHOLE).is_file()]
    for old in sorted(builds, key=lambda path: (path / WHOLE).stat().st_mtime)[:-_KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def main() -> int:
    """0 also where it cannot be done: nothing depends on it."""
    try:
        print(f"compiled: {build()}")
    except CannotCompile as error:
        print(f"not compiled, so the same files run as Python, slower: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

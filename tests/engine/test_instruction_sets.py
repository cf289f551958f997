"""The kernels as other machines compile them: what is written for AVX-512 has another form elsewhere."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
KINDS = "not compile and not kept"  # which compile once more
FILES = (
    "test_engine_kernels.py",
    "test_shared_prefix.py",
    "test_layers.py",
    "test_weights.py",
    "test_compressed_float32.py",
)
COMPILER = """#!/bin/sh
for one in "$@"; do
    shift
    [ "$one" = -march=native ] && one=-march={name} && echo >> '{built}'
    set -- "$@" "$one"
done
exec '{compiler}' "$@"
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(platform.machine() != "x86_64" or not shutil.which("cc"), reason="asks for x86-64 by name"),
]


@pytest.mark.parametrize("name", ["haswell", "x86-64"])
def test_the_tests_of_the_kernels_hold_with_fewer_instructions(name, tmp_path):
    """AVX2, and what every x86-64 has."""
    if name == "haswell" and "avx2" not in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
        pytest.skip("this machine has no AVX2")
    compiler, built = tmp_path / "cc", tmp_path / "built"
    compiler.write_text(COMPILER.format(name=name, built=built, compiler=shutil.which("cc")), encoding="utf-8")
    compiler.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not slow and not gpu",
         "-k", KINDS, *(str(HERE / file) for file in FILES)],
        capture_output=True, text=True, check=False,
        env=os.environ | {"CC": str(compiler), "XDG_CACHE_HOME": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    assert built.exists()

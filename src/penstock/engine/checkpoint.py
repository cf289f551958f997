"""safetensors on disk: what is in a checkpoint, from the headers alone, and its tensors one by one.

`model_footprint` answers what a model will need before anything heavy is imported or read. `Checkpoint` hands out
tensors by name and shape; each is copied out of the memory-mapped file in the dtype asked for, so a load holds one
copy of the weights, and what nobody asked for is an error rather than a surprise.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from penstock.engine.architecture import Architecture, read_architecture
from penstock.engine.weights.formats import COMPUTE_BYTES, format_of, matrix_bytes
from penstock.errors import UnsupportedModel

if TYPE_CHECKING:
    import torch

_FLOATS: Final = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Bytes of an element."""
_HEADER_LIMIT_BYTES: Final = 100_000_000
# Buffers that old versions of transformers saved; they are functions of config.json.
_LOOKED_UP: Final = re.compile(r"(embed_tokens|wte|wpe)\.weight$")
_ROUTER: Final = re.compile(r"\.gate\.weight$")
_DERIVED: Final = re.compile(r"(rotary_emb\.inv_freq|(^|\.)attn\.(masked_)?bias)$")


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a model needs and how it is shaped, known from config.json and the safetensors headers."""

    parameters: int
    weight_bytes: int
    kv_bytes_per_token: int
    max_sequence_tokens: int
    architecture: str
    vocab_size: int


def model_footprint(path: Path | str, dtype: str = "float32") -> Footprint:
    """The footprint of the checkpoint in directory `path`, its weights in `dtype` (a name in weights/formats.py).

    Reads no weights and imports no torch. Raises UnsupportedModel.
    """
    element = dtype_bytes(dtype)
    architecture = read_architecture(path)
    headers = read_headers(path)
    tied = {"lm_head.weight"} if architecture.tied_embeddings else set()
    entries = {name: one for name, one in headers.items() if name not in tied and not _DERIVED.search(name)}
    parameters = sum(prod(entry.shape) for entry in entries.values())
    return Footprint(
        parameters=parameters,
        weight_bytes=_weight_bytes(architecture, entries, dtype),
        kv_bytes_per_token=architecture.kv_elements_per_token * element,
        max_sequence_tokens=architecture.max_sequence_tokens,
        architecture=architecture.name,
        vocab_size=architecture.vocab_size,
    )


def dtype_bytes(dtype: str) -> int:
    """Bytes of one element of what is not packed: embeddings, norms, adapters, KV. Raises UnsupportedModel."""
    return COMPUTE_BYTES[format_of(dtype).compute]


def _weight_bytes(architecture: Architecture, entries: Mapping[str, Entry], dtype: str) -> int:
    """What the engine holds of them: packed matrices of products, and the rest in the compute type."""
    total, form = 0, format_of(dtype)
    for name, entry in entries.items():
        looked_up = _LOOKED_UP.search(name) is not None
        product = len(entry.shape) == 2 and not looked_up and _ROUTER.search(name) is None
        if not product:
            total += prod(entry.shape) * COMPUTE_BYTES[form.compute]
        if product or (architecture.tied_embeddings and form.narrow and looked_up and "wpe" not in name):
            outputs, inputs = reversed(entry.shape) if architecture.name.startswith("GPT2") and product else entry.shape
            # What is stored in bfloat16 needs no more than that to stay what it is.
            whole = dtype == "float32_compressed" and entry.dtype == "BF16"
            total += matrix_bytes("bfloat16" if whole else dtype, outputs, inputs)
    return total


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one tensor lies."""

    file: Path
    shape: tuple[int, ...]
    bytes: int
    dtype: str
    """As safetensors names it."""


def read_headers(path: Path | str) -> dict[str, Entry]:
    """Every tensor of the checkpoint in directory `path`: its file and shape. Sharded or not; reads headers only.

    Raises: UnsupportedModel: there are no safetensors (pickles are named and refused), a shard is missing, a header
    is damaged, or a tensor is not of a floating-point dtype.
    """
    entries: dict[str, Entry] = {}
    for file in weight_files(Path(path)):
        entries.update(entries_of(file))
    return entries


def entries_of(file: Path) -> dict[str, Entry]:
    """The tensors of one safetensors file. Raises UnsupportedModel as `read_headers`."""
    entries: dict[str, Entry] = {}
    for name, tensor in _header(file).items():
        if name == "__metadata__":
            continue
        if tensor["dtype"] not in _FLOATS and not _DERIVED.search(name):
            raise UnsupportedModel(
                field=name,
                value=tensor["dtype"],
                why="this dtype is not implemented (quantized weights?)",
                remedy="a checkpoint in float32, float16 or bfloat16",
            )
        offsets = tensor["data_offsets"]
        entries[name] = Entry(file, tuple(tensor["shape"]), offsets[1] - offsets[0], tensor["dtype"])
    return entries


def weight_files(path: Path) -> list[Path]:
    """Those that a load reads, in its order: the index's, where there is one. Raises UnsupportedModel."""
    index = path / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            files = [path / Path(name).name for name in names]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise _damaged(index, f"the index cannot be read ({error!r})") from None
    else:
        files = sorted(path.glob("*.safetensors"))
    if not files:
        pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for file in path.glob(pattern))
        raise UnsupportedModel(
            field="model",
            value=str(path),
            why=f"it holds pickles ({', '.join(pickles[:3])}): reading them can run code from elsewhere"
            if pickles
            else "there is no *.safetensors file in it",
            remedy="the checkpoint's safetensors version (transformers' save_pretrained writes one)",
        )
    missing = [file.name for file in files if not _is_file(file)]
    if missing:
        raise _damaged(index, f"these shards are missing: {', '.join(missing)}")
    return files


def _is_file(file: Path) -> bool:
    try:
        return file.is_file()
    except ValueError:  # no name of a file: it holds NUL
        return False


def _header(file: Path) -> dict[str, dict[str, Any]]:
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= _HEADER_LIMIT_BYTES:
            raise _damaged(file, "it does not start with a safetensors header")
        text = stream.read(length)
    try:
        header: dict[str, dict[str, Any]] = json.loads(text)
        end = max((_end(entry) for name, entry in header.items() if name != "__metadata__"), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _damaged(file, "its header is not what safetensors writes") from None
    size = file.stat().st_size
    if size < 8 + length + end:
        raise _damaged(file, f"it ends early: {size} bytes, the header promises {8 + length + end}")
    return header


def _end(entry: dict[str, Any]) -> int:
    """Where a tensor's bytes end. Raises ValueError, KeyError, TypeError: it is no entry, or contradicts itself."""
    begin, end = entry["data_offsets"]
    shape, dtype = entry["shape"], entry["dtype"]
    if any(type(one) is not int or one < 0 for one in (*shape, begin, end)) or not isinstance(dtype, str):
        raise ValueError(entry)
    if end < begin or (dtype in _FLOATS and prod(shape) * _FLOATS[dtype] != end - begin):
        raise ValueError(entry)
    return int(end)


def _damaged(file: Path, why: str) -> UnsupportedModel:
    return UnsupportedModel(field="model", value=str(file), why=why, remedy="download the checkpoint again")


class Checkpoint:
    """The tensors of one checkpoint, each taken once, by name and shape.

    A `prefix` that the whole checkpoint carries or lacks (GPT-2 exists with and without "transformer.") is resolved
    here, so that model files name tensors one way.
    """

    def __init__(
        self, path: Path | str, dtype: torch.dtype, device: torch.device, *, prefix: str = "",
        on_read: Callable[[int, int], None] | None = None,
    ) -> None:  # fmt: skip
        """`on_read` is told the bytes taken so far and those of all tensors, after each one."""
        self._entries = read_headers(path)
        self._on_read, self._read_bytes = on_read, 0
        self._total_bytes = sum(entry.bytes for entry in self._entries.values())
        self._dtype, self._device, self._prefix = dtype, device, prefix
        if prefix and not any(name.startswith(prefix) for name in self._entries):
            self._entries = {
                name if name == "lm_head.weight" else prefix + name: e for name, e in self._entries.items()
            }
            self._stored_prefix = ""
        else:
            self._stored_prefix = prefix
        self._taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def take(self, name: str, *shape: int) -> torch.Tensor:
        """The tensor of that name: a copy of its own, in this checkpoint's dtype, on its device.

        Raises: UnsupportedModel: it is missing or has another shape.
        """
        tensor = self._mapped(name, *shape).to(self._device, self._dtype, copy=True)
        self._count(name)
        return tensor

    def _mapped(self, name: str, *shape: int) -> torch.Tensor:
        """As it is stored, in memory mapped from the file: the file is opened anew for each tensor, so that pages read
        leave the process with the tensor rather than stay to the end."""
        from safetensors import SafetensorError, safe_open

        entry = self._entries.get(name)
        if entry is None:
            raise UnsupportedModel(
                field="model", value=name, why="the checkpoint lacks this tensor", remedy="a complete checkpoint"
            )
        if entry.shape != shape:
            raise UnsupportedModel(
                field=name,
                value=entry.shape,
                why=f"config.json says its shape is {shape}",
                remedy="config.json and weights of the same model",
            )
        self._taken.add(name)
        stored = name
        if self._prefix and not self._stored_prefix and name != "lm_head.weight":
            stored = name.removeprefix(self._prefix)
        try:
            with safe_open(entry.file, framework="pt") as stream:
                tensor: torch.Tensor = stream.get_tensor(stored)
        except SafetensorError as error:
            raise _damaged(entry.file, str(error)) from None
        return tensor

    def take_stacked(self, names: Iterable[tuple[str, tuple[int, ...]]]) -> torch.Tensor:
        """Several tensors, one below the other along dimension 0, as one."""
        import torch

        parts = list(names)
        tensor = torch.cat([self._mapped(name, *shape) for name, shape in parts]).to(self._device, self._dtype)
        self._count(*(name for name, _ in parts))
        return tensor

    def _count(self, *names: str) -> None:
        if self._on_read is not None:
            self._read_bytes += sum(self._entries[name].bytes for name in names)
            self._on_read(self._read_bytes, self._total_bytes)

    def finish(self, *, unused: Iterable[str] = ()) -> None:
        """Raises UnsupportedModel if the checkpoint holds tensors no one took, `unused` aside."""
        left = set(self._entries) - self._taken - set(unused)
        left = {name for name in left if not _DERIVED.search(name)}
        if left:
            raise UnsupportedModel(
                field="model",
                value=sorted(left)[:3],
                why=f"config.json has no place for {len(left)} tensor(s) of the checkpoint, these among them",
                remedy="config.json and weights of the same model",
            )

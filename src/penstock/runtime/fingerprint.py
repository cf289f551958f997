"""What `system_fingerprint` tells clients: whether the answers before and after come from the same model and code; and
the part of it that is the checkpoint's alone, for people who ask which weights these are.

Reading all of a large checkpoint would delay the start, so each tensor is sampled. Training changes every tensor it
touches almost everywhere, which the samples show; an edit of a few bytes between them would go unseen.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import BinaryIO, Final

from penstock.catalog import models_in_the_box, resolve_model
from penstock.errors import UnsupportedModel

SAMPLE_BYTES: Final = 4096
_WHOLE: Final = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.json",
    "chat_template.jinja", "additional_chat_templates/*.jinja", "generation_config.json", "modules.json",
    "1_Pooling/config.json",
)  # fmt: skip
"""What else of a checkpoint an answer depends on: small files, read whole. Patterns of paths in its directory."""


def fingerprint(checkpoint: str, *, dtype: str, kernels: str) -> str:
    """'fp_' and 12 hex digits: of the checkpoint's hash, the precision, the kernels' name and Penstock's version."""
    return "fp_" + hashlib.sha256(f"{_version()} {dtype} {kernels} {checkpoint}".encode()).hexdigest()[:12]


def hash_of_checkpoint(path: Path) -> str:
    """12 hex digits for the checkpoint in directory `path`: the same wherever it lies and however it is served.

    Of the files that say how the weights are used (shape, tokens, chat templates, sampling defaults, pooling), and of
    each weights file its name, size and header, and SAMPLE_BYTES at the start, the middle and the end of each tensor.

    Raises: UnsupportedModel: a header is damaged.
    """
    digest = hashlib.sha256()
    for pattern in _WHOLE:
        for file in sorted(path.glob(pattern)):
            digest.update(f"{file.relative_to(path).as_posix()} {file.stat().st_size} ".encode())
            digest.update(file.read_bytes())
    for file in sorted(path.glob("*.safetensors")):
        digest.update(f"{file.name} {file.stat().st_size} ".encode())
        for piece in _pieces(file):
            digest.update(piece)
    return digest.hexdigest()[:12]


def hash_of_model(model: str) -> str | None:
    """That of a checkpoint directory or a model in the box; None where there are no weights: a name of the catalogue.

    Raises UnsupportedModel.
    """
    path = Path(model).expanduser()
    path = path.parent if path.suffix == ".json" and path.is_file() else path
    if model not in models_in_the_box() and not path.is_dir():
        return None
    found = resolve_model(str(path) if path.is_dir() else model)
    return hash_of_checkpoint(found) if any(found.glob("*.safetensors")) else None


def _pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        header, places = _header(file, stream)
        yield header
        for begin, end in places:
            last = max(begin, end - SAMPLE_BYTES)
            for offset in sorted({begin, (begin + last) // 2, last}):
                stream.seek(8 + len(header) + offset)
                yield stream.read(min(SAMPLE_BYTES, end - offset))


def _header(file: Path, stream: BinaryIO) -> tuple[bytes, list[tuple[int, int]]]:
    """The header of a safetensors file, and where its tensors lie behind it."""
    try:
        (length,) = struct.unpack("<Q", stream.read(8))
        size = file.stat().st_size
        header = stream.read(min(length, size))
        tensors = json.loads(header)
        tensors.pop("__metadata__", None)
        places = sorted((begin, end) for begin, end in (tensor["data_offsets"] for tensor in tensors.values()))
        if not all(type(begin) is type(end) is int and 0 <= begin <= end <= size for begin, end in places):
            raise ValueError(places)
        return header, places
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UnsupportedModel(
            field="model", value=str(file), why="its header is not what safetensors writes",
            remedy="download the checkpoint again",
        ) from None  # fmt: skip


def _version() -> str:
    try:
        return version("penstock")
    except PackageNotFoundError:
        return "source tree"

"""What `system_fingerprint` tells clients: whether the answers before and after come from the same model and code.

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
from typing import Final

SAMPLE_BYTES: Final = 4096
_WHOLE: Final = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.json",
    "chat_template.jinja", "additional_chat_templates/*.jinja", "generation_config.json", "modules.json",
    "1_Pooling/config.json",
)  # fmt: skip
"""What else of a checkpoint an answer depends on: small files, read whole. Patterns of paths in its directory."""


def fingerprint(path: Path, *, dtype: str, kernels: str) -> str:
    """'fp_' and 12 hex digits for the checkpoint in directory `path`, whose headers are known to be sound.

    Of Penstock's version, the precision, the kernels' name, the files that say how the weights are used (shape,
    tokens, chat templates, sampling defaults, pooling), and of each weights file its header and SAMPLE_BYTES at the
    start, the middle and the end of each tensor. The directory's own name and place do not count.
    """
    digest = hashlib.sha256(f"{_version()} {dtype} {kernels}".encode())
    for pattern in _WHOLE:
        for file in sorted(path.glob(pattern)):
            digest.update(f"{file.relative_to(path).as_posix()} {file.stat().st_size} ".encode())
            digest.update(file.read_bytes())
    for file in sorted(path.glob("*.safetensors")):
        digest.update(f"{file.name} {file.stat().st_size} ".encode())
        for piece in _pieces(file):
            digest.update(piece)
    return "fp_" + digest.hexdigest()[:12]


def _pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = stream.read(length)
        yield header
        tensors = json.loads(header)
        tensors.pop("__metadata__", None)
        for begin, end in sorted(tensor["data_offsets"] for tensor in tensors.values()):
            last = max(begin, end - SAMPLE_BYTES)
            for offset in sorted({begin, (begin + last) // 2, last}):
                stream.seek(8 + length + offset)
                yield stream.read(min(SAMPLE_BYTES, end - offset))


def _version() -> str:
    try:
        return version("penstock")
    except PackageNotFoundError:
        return "source tree"

"""Reads operator databases in the layout of aiconfigurator-core: data/<system>/<family>/<backend>/<version>/*.parquet.

Each file holds one operator on one GPU system as one engine runs it; `latency` is in milliseconds. The engine's newest
collection answers first, older ones fill what it lacks. Files are read when first asked, and of the large ones only the
rows of the shape in question.
Source: github.com/ai-dynamo/aiconfigurator (Apache-2.0), aic-core/src/aiconfigurator_core/systems.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from penstock.errors import InvalidDeployment

Backend = str
BACKENDS: Final = ("vllm", "sglang", "trtllm")
FAMILIES: Final = {
    "gemm_perf": "gemm", "context_attention_perf": "attention", "generation_attention_perf": "attention",
    "context_mla_perf": "mla", "generation_mla_perf": "mla", "mla_bmm_perf": "mla_bmm",
    "mla_context_module_perf": "mla", "mla_generation_module_perf": "mla",
    "moe_perf": "moe", "nccl_perf": "comm", "custom_allreduce_perf": "comm", "gdn_perf": "linear_attention",
}  # fmt: skip
"""File name to the folder it stands in."""
REMEDY: Final = (
    "pip install 'penstock[measured]', or name a folder that holds data/<system>/<family>/<backend>/<version>"
)

Rows = list[dict[str, Any]]


def installed_folder() -> Path:
    """Where the package aiconfigurator-core keeps its data. Raises InvalidDeployment if it is missing."""
    import importlib.util

    spec = importlib.util.find_spec("aiconfigurator_core")
    if spec is None or spec.origin is None:
        raise InvalidDeployment(
            field="twin.price",
            value="measured",
            why="the operator databases of the package aiconfigurator-core are not installed",
            remedy=REMEDY,
        )
    return Path(spec.origin).parent / "systems" / "data"


def read_table(path: Path, columns: list[str] | None = None, where: dict[str, Any] | None = None) -> Rows:
    """Rows of a parquet file as dicts; `where` keeps those with equal values.

    Raises: InvalidDeployment: no pyarrow, or the file cannot be read.
    """
    rows: Rows = _read(path, columns, where).to_pylist()
    return rows


def read_tuples(path: Path, columns: list[str], where: dict[str, Any] | None = None) -> Iterator[tuple[Any, ...]]:
    """The same as tuples in the order of `columns`, several times as fast; None where a file lacks the column."""
    table = _read(path, columns, where)
    there = {name: table[name].to_pylist() for name in table.column_names}
    return zip(*(there.get(name, [None] * table.num_rows) for name in columns), strict=True)


def distinct(path: Path, columns: list[str]) -> Rows:
    """The rows of these columns that differ, sorted."""
    table = _read(path, columns, None)
    rows: Rows = table.group_by(table.column_names).aggregate([]).to_pylist()
    return sorted(rows, key=lambda row: tuple(row[name] for name in columns))


def _read(path: Path, columns: list[str] | None, where: dict[str, Any] | None) -> Any:
    """The arrow table."""
    try:
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq
    except ImportError as missing:
        raise InvalidDeployment(
            field="twin.price", value="measured", why="reading parquet files needs pyarrow", remedy=REMEDY
        ) from missing
    try:
        known = pq.read_schema(path).names
        if columns is not None:
            columns = [name for name in columns if name in known]
        table = pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowInvalid) as broken:
        raise InvalidDeployment(
            field="twin.price", value=str(path), why=f"not a readable parquet file ({broken})", remedy=REMEDY
        ) from broken
    for name, value in (where or {}).items():
        if name in table.column_names:
            table = table.filter(pc.equal(table[name], value))
    return table


class Database:
    """One GPU system as one engine runs it.

    Args:
        system: its name there, such as h100_sxm (`Device.measured_as`).
        backend: vllm, sglang or trtllm.
        version: collection to ask first; None: the newest.
        folder: the folder that holds one folder per system; None: that of the installed package.
    Raises: InvalidDeployment: package, system or backend not there.
    """

    def __init__(
        self, system: str, backend: Backend = "vllm", version: str | None = None, folder: Path | None = None
    ) -> None:
        root = installed_folder() if folder is None else folder
        if (root / "data").is_dir():
            root = root / "data"
        self.system, self.backend, self.version, self.folder = system, backend, version, folder
        self._root = root / system
        if not self._root.is_dir():
            there = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
            raise InvalidDeployment(
                field="hardware.name",
                value=system,
                why="no operators were measured on it" if there else f"{root} holds no operator data",
                remedy=f"one of {', '.join(there)}, or the price roofline" if there else REMEDY,
            )
        if backend not in BACKENDS:
            raise InvalidDeployment(
                field="twin.backend", value=backend, why="no engine of that name was measured",
                remedy=f"one of {', '.join(BACKENDS)}",
            )  # fmt: skip

    def files(self, name: str, backend: Backend | None = None) -> list[Path]:
        """The collections of one operator, that of the wanted version first, then newest first."""
        folder = self._root / FAMILIES[name] / (backend or self.backend)
        if not folder.is_dir():
            return []
        return sorted(
            folder.glob(f"*/{name}.parquet"),
            key=lambda path: (path.parent.name == self.version, _order(path.parent.name)),
            reverse=True,
        )

    def sources(self, name: str, *, own_only: bool = False) -> Iterator[tuple[Path, bool]]:
        """Files to ask in turn: this engine's own (True), then those of the other engines."""
        for path in self.files(name):
            yield path, True
        for other in BACKENDS:
            if other != self.backend and not own_only:
                for path in self.files(name, other):
                    yield path, False


def _order(version: str) -> tuple[tuple[int, ...], int]:
    """1.3.0rc20 before 1.3.0rc23; a release after its candidates."""
    main, _, candidate = version.partition("rc")
    numbers = tuple(int(part) for part in re.findall(r"\d+", main))
    return numbers, int(candidate) if candidate.isdigit() else 1 << 20

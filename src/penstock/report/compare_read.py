"""A side of a comparison from its file: a result, its requests, or a recorded schedule; which, its content says.

    {...}        JSON of `penstock bench` or `penstock simulate`; of several stages or points one, named after a #
    {...}\\n...   a line per request: `--out` of either
    {"event"...  a recorded schedule: `--server.record`, `penstock record`

All but the first may be compressed.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from penstock.errors import BadInput
from penstock.report.compare import METRICS, Run
from penstock.report.latency import Outcome, RequestRecord
from penstock.report.result import StageResult
from penstock.runtime.recorded import requests_of
from penstock.runtime.schedule import Schedule, inflated, read_schedule

KINDS: Final = "JSON of penstock bench or simulate, their --out of a line per request, or a schedule of --server.record"
CLIENT: Final = "measured by a client, HTTP included"
ENGINE: Final = "measured in the engine's process, all requests at once"
CONTROL: Final = "recorded where control sees it, without HTTP"
SIMULATED: Final = "simulated, without HTTP"
_KEYS: Final = {metric.key for metric in METRICS}
_COUNTS: Final = ("num_prompts", "completed", "achieved_request_rate", "total_input_tokens", "total_output_tokens")


class _Line(msgspec.Struct):
    """A request of `--out`; what else stands in a line follows from this."""

    stage: str
    index: int
    outcome: Outcome
    arrival_s: float
    sent_s: float
    end_s: float
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    status: int | None = None
    reason: str = ""
    token_s: list[float] | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    interrupted: bool = False

    def record(self) -> RequestRecord:
        ends = [time for time in (self.first_token_s, self.last_token_s) if time is not None]
        return RequestRecord(
            index=self.index, arrival_s=self.arrival_s, sent_s=self.sent_s, end_s=self.end_s,
            prompt_tokens=self.prompt_tokens, output_tokens=self.output_tokens, cached_tokens=self.cached_tokens,
            token_s=ends if self.token_s is None else self.token_s, outcome=self.outcome, status=self.status,
            reason=self.reason,
        )  # fmt: skip


def read_run(named: str) -> Run:
    """The run in a file; `FILE#STAGE` is one of several, by name or number (1 is the first).

    Raises:
        BadInput: unreadable, cut off, of no kind that compares, or with several stages of which none is named.
    """
    path, stage = _split(named)
    try:
        text, cut = inflated(path.read_bytes())
    except (OSError, zlib.error) as error:
        raise BadInput(field="file", value=named, why=f"it cannot be read: {error}", remedy=KINDS) from None
    head = text[:4096].lstrip()
    if head.startswith(b'{"event":'):
        if stage:
            raise BadInput(field=named, value=stage, why="a schedule has no stages", remedy=str(path))
        return run_of(read_schedule(path), path.name)
    if cut:
        raise BadInput(
            field=named, value=str(path), why="the compressed file was cut off", remedy="a whole copy of it"
        )  # fmt: skip
    whole = _json(text)
    if isinstance(whole, dict) and "outcome" not in whole:
        return _result(named, path, stage, whole)
    if head.startswith(b'{"'):
        return _requests(named, path, stage, text)
    raise BadInput(field=named, value=text[:60].decode(errors="replace"), why="not a run", remedy=KINDS)


def run_of(schedule: Schedule, name: str, source: str = CONTROL) -> Run:
    """A recorded schedule as a side. Raises BadInput: it contradicts itself."""
    found = requests_of(schedule)
    notes = ["was cut off: its end is missing"] if schedule.truncated else []
    if found.without_end:
        notes.append(f"left out {found.without_end} requests without an end: refused, or under way at the end")
    if found.continued:
        notes.append(f"has {found.continued} requests that began before it: they count from when they came")
    model = schedule.header.deployment.get("model") or {}
    return Run(
        name=name, source=source, numbers=StageResult.of(name, found.records).to_json(), records=found.records,
        model=model.get("name") or model.get("path"), notes=tuple(notes),
    )  # fmt: skip


def _split(named: str) -> tuple[Path, str]:
    """A file may have a # in its name."""
    path = Path(named).expanduser()
    if "#" not in named or path.exists():
        return path, ""
    file, _, stage = named.rpartition("#")
    return Path(file).expanduser(), stage


def _json(text: bytes) -> Any:
    """None of what is not one JSON value."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def _result(named: str, path: Path, stage: str, whole: dict[str, Any]) -> Run:
    several = whole.get("stages", whole.get("points"))
    if isinstance(several, list):
        names = [_name(one) for one in several]
        numbers = {**whole, **several[_chosen(named, path, stage, names)]}
    elif stage:
        raise BadInput(field=named, value=stage, why="there is one run in the file", remedy=str(path))
    else:
        numbers = whole
    if numbers.get("error"):
        raise BadInput(field=named, value=numbers["error"], why="this point failed", remedy="one that ran")
    if not _KEYS & numbers.keys():
        raise BadInput(field=named, value=sorted(whole)[:6], why="it has no metric of a run", remedy=KINDS)
    for key in (*_COUNTS, *_KEYS):
        value = numbers.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise BadInput(
                field=f"{path}: {key}", value=value, why="not a number", remedy="an unchanged result"
            )  # fmt: skip
    simulated = "basis_share" in numbers
    source = SIMULATED if simulated else ENGINE if "share_of_optimal" in numbers else CLIENT
    config = numbers.get("config")
    model = config.get("model") if isinstance(config, dict) else numbers.get("model_id", numbers.get("model"))
    name = path.name + (f"#{stage}" if stage else "")
    return Run(name=name, source=source, numbers=numbers, model=None if model is None else str(model))


def _name(one: Any) -> str:
    """Of a stage its name, of a point what was varied."""
    if not isinstance(one, dict):
        return ""
    varied = one.get("varied")
    if isinstance(varied, dict):
        return ", ".join(f"{key}={value}" for key, value in varied.items())
    return str(one.get("stage", ""))


def _chosen(named: str, path: Path, stage: str, names: Sequence[str]) -> int:
    """Which of several runs, by name or number."""
    if stage in names:
        return names.index(stage)
    if stage.isdigit() and 1 <= int(stage) <= len(names):
        return int(stage) - 1
    if len(names) == 1 and not stage:
        return 0
    raise BadInput(
        field=named, value=stage or len(names), why="no such run in the file" if stage else "several runs in one file",
        remedy="one of " + ", ".join(f"{path}#{name}" for name in names) if names else KINDS,
    )  # fmt: skip


def _requests(named: str, path: Path, stage: str, text: bytes) -> Run:
    decoder = msgspec.json.Decoder(_Line)
    stages: dict[str, list[_Line]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            row = decoder.decode(line)
        except msgspec.MsgspecError as error:
            raise BadInput(field=f"{path}:{number}", value=line[:80], why=str(error), remedy=KINDS) from None
        stages.setdefault(row.stage, []).append(row)
    names = list(stages)
    rows = stages[names[_chosen(named, path, stage, names)]]
    records = [row.record() for row in rows]
    whole = all(row.token_s is not None for row in rows)
    cut = any(row.interrupted for row in rows)
    numbers: Mapping[str, Any] = StageResult.of(rows[0].stage, records, interrupted=cut).to_json()
    if not whole:
        numbers = {key: value for key, value in numbers.items() if not key.endswith("_itl_ms")}
    source = {"simulated": SIMULATED, "offline": ENGINE}.get(rows[0].stage, CLIENT)
    name = path.name + (f"#{stage}" if stage else "")
    return Run(name=name, source=source, numbers=numbers, records=records, token_times=whole)

"""Options that a run of `bench` or `inspect` would not read: whoever gave one expects an effect, so it is an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import typer

from penstock.errors import BadInput

_PACES: Final = ("rate", "rates", "load", "concurrency")
_SERVED: Final = (
    "url", "api_key", "endpoint", "vocab_size", "find_capacity", "capacity_stage", "max_concurrency", "shape", "cv",
    "speed", "dequantise", "duration", "warmup", "ignore_eos", "temperature", "turns", "think", "cancel_fraction",
    "retry", "timeout", "max_connections", "slo_ttft", "slo_tpot", "slo_e2e", "slo_token_rate", "report",
)  # fmt: skip
_WHERE: Final = ("url", "api_key")
"""Which server there is, a file or the environment may say for all runs; nobody unsets OPENAI_API_KEY for one."""

Options = dict[str, Any]
"""All of them by name, defaults included."""


def _offline(options: Options) -> bool:
    return bool(options["offline"])


def _online(options: Options) -> bool:
    return not options["offline"]


def _by_law(options: Options) -> bool:
    return bool(options["rate"] or options["rates"] or options["load"]) and options["trace"] is None


def _own_times(options: Options) -> bool:
    return options["trace"] is not None and not any(options[name] for name in _PACES)


def _measured(options: Options) -> bool:
    """There is a stage beyond the search for the capacity."""
    return not options["find_capacity"] or options["trace"] is not None or any(options[name] for name in _PACES)


Rules = tuple[tuple[tuple[str, ...], Callable[[Options], bool], str], ...]
"""Names, whether this run reads them, and where they belong."""

BENCH: Final[Rules] = (
    (("dtype", "threads", "token_budget", "peak"), _offline, "with --offline"),
    (_SERVED, _online, "without --offline"),
    (("input_tokens", "output_tokens"), lambda o: o["trace"] is None and o["lengths_from"] is None,
     "without --trace and --lengths-from, which have lengths of their own"),
    (("lengths_from",), lambda o: o["trace"] is None, "without --trace, which has lengths of its own"),
    (("speed",), _own_times, "with a --trace at its own times"),
    (("dequantise",), lambda o: o["trace"] is not None and o["concurrency"] is None, "with the times of a --trace"),
    (("shape",), _by_law, "with --rate, --rates or --load, and without --trace"),
    (("cv",), lambda o: _by_law(o) and o["shape"] == "gamma", "with --shape gamma at a --rate"),
    (("capacity_stage", "max_concurrency"), lambda o: bool(o["find_capacity"] or o["load"]),
     "with --find-capacity or --load"),
    (("think",), lambda o: o["turns"] > 1, "with --turns 2 or more"),
    (("requests", "duration", "cancel_fraction"), _measured, "with a stage to measure: --rate, --load, --concurrency"),
    (("vocab_size",), lambda o: o["endpoint"] != "chat", "with --endpoint completions"),
)  # fmt: skip


INSPECT: Final[Rules] = (
    (("hardware", "tensor_parallel", "pipeline_parallel"), lambda o: o["what"] == "fit", "with `inspect fit`"),
    (("context", "dtype", "kv_dtype"), lambda o: o["what"] != "hardware" and o["name"] is not None, "with a model"),
)


def require_effect(context: typer.Context, rules: Rules) -> None:
    """Raises BadInput: an option was given, on the command line, in a file or in the environment, that
    nothing of this run would read."""
    options = context.params
    for names, belongs, place in rules:
        for name in names:
            if _given(context, name) and not belongs(options):
                raise BadInput(
                    field="--" + name.replace("_", "-"), value="..." if name == "api_key" else options[name],
                    why="it would have no effect here", remedy=f"leave it out, or use it {place}",
                )  # fmt: skip


def _given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    if name in _WHERE:
        return source is not None and source.name == "COMMANDLINE"
    return source is not None and source.name not in ("DEFAULT", "PROMPT")

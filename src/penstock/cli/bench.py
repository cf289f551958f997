"""`penstock bench`: load for any OpenAI-compatible server, and what its users would have felt.

This file turns flags into BenchSettings and a result into text; `penstock.workload.bench` does the work. Progress goes
to stderr on a terminal, the result to stdout. Exit code 0: every stage valid and no request failed (refusals with 429
are not failures); 1 otherwise; 2 for flags that cannot be; 130 after Ctrl-C, with the result and the files of what was
measured until then.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Optional

import typer

from penstock.cli.bench_shown import progress_shown, show
from penstock.cli.counts import count
from penstock.cli.effect import BENCH, require_effect
from penstock.errors import BadInput
from penstock.report.html import html_report
from penstock.report.latency import Limits
from penstock.report.table import write_requests, write_text
from penstock.units import parse_seconds
from penstock.workload.arrivals import SHAPES, arrivals

from penstock.workload.bench import BenchResult, BenchSettings, bench as run_bench  # isort: skip
from penstock.workload.client import run_async
from penstock.workload.lengths import Bootstrap, parse_lengths
from penstock.workload.plan import Workload
from penstock.workload.trace import Trace, read_trace

_SERVER, _LOAD, _WORDS, _USERS, _OUTPUT = "Server", "Load", "Lengths", "Users", "Result"
_OFFLINE = "Without a server"
Text = Optional[str]  # noqa: UP045 - typer reads these at run time


def bench(
    context: typer.Context,
    url: Annotated[Text, typer.Option(help="Server, such as http://127.0.0.1:8000.", rich_help_panel=_SERVER)] = None,
    model: Annotated[
        Text,
        typer.Option(
            help="Default: the first of /v1/models. With --offline a checkpoint directory; default: the model in the "
            "box.",
            rich_help_panel=_SERVER,
        ),
    ] = None,
    api_key: Annotated[
        Text, typer.Option(envvar="OPENAI_API_KEY", help="Sent as a bearer token.", rich_help_panel=_SERVER)
    ] = None,
    endpoint: Annotated[
        str, typer.Option(help="completions (prompts as token ids) or chat.", rich_help_panel=_SERVER)
    ] = "completions",
    vocab_size: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            help="Ids of prompts lie below; default: what /v1/models says, else 1024.",
            rich_help_panel=_SERVER,
            **count("--vocab-size", least=16),
        ),
    ] = None,
    offline: Annotated[
        bool,
        typer.Option(
            "--offline", help="No server: the engine in this process, all requests at once.", rich_help_panel=_OFFLINE
        ),
    ] = False,
    dtype: Annotated[
        Text, typer.Option(help="Precision, as model.dtype; default float32.", rich_help_panel=_OFFLINE)
    ] = None,
    threads: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="CPU threads; default: all cores.", rich_help_panel=_OFFLINE, **count("--threads", least=1)),
    ] = None,
    token_budget: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Tokens in one step.", rich_help_panel=_OFFLINE, **count("--token-budget", least=1)),
    ] = None,
    peak: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            min=0.001,
            help="The machine's fp32 matrix peak, GFLOP/s; default: it is measured.",
            rich_help_panel=_OFFLINE,
        ),
    ] = None,
    trace: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="Azure, Mooncake, BurstGPT, LLMServingSim or Vidur file, plain or .gz, replayed open loop.",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    rate: Annotated[Text, typer.Option(help="Requests per second, open loop.", rich_help_panel=_LOAD)] = None,
    rates: Annotated[Text, typer.Option(help="A stage for each rate: 1,2,4.", rich_help_panel=_LOAD)] = None,
    load: Annotated[
        Text,
        typer.Option(
            help="A stage for each share of the capacity, measured first: 0.4,0.8,1.5.", rich_help_panel=_LOAD
        ),
    ] = None,
    concurrency: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            help="Closed loop with this many at once.", rich_help_panel=_LOAD, **count("--concurrency", least=1)
        ),
    ] = None,
    find_capacity: Annotated[
        bool,
        typer.Option(
            "--find-capacity", help="Closed loop, doubled until throughput stops rising.", rich_help_panel=_LOAD
        ),
    ] = False,
    capacity_stage: Annotated[
        str, typer.Option(help="Time of each step of that search.", rich_help_panel=_LOAD)
    ] = "20s",
    max_concurrency: Annotated[
        int,
        typer.Option(help="Where that search ends.", rich_help_panel=_LOAD, **count("--max-concurrency", least=8)),
    ] = 256,
    shape: Annotated[
        str, typer.Option(help="Law of arrival: " + ", ".join(SHAPES) + ".", rich_help_panel=_LOAD)
    ] = "poisson",
    cv: Annotated[
        float, typer.Option(help="Coefficient of variation of the gaps, for gamma.", rich_help_panel=_LOAD)
    ] = 2.0,
    speed: Annotated[
        float, typer.Option(help="A trace's time runs this many times as fast.", rich_help_panel=_LOAD)
    ] = 1.0,
    dequantise: Annotated[
        bool, typer.Option("--dequantise", help="Spread a trace's 3 s ticks (Mooncake).", rich_help_panel=_LOAD)
    ] = False,
    requests: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            "--requests",
            "--limit",
            help="Requests per stage; default 100, or the whole trace.",
            rich_help_panel=_LOAD,
            **count("--requests", least=1),
        ),
    ] = None,
    duration: Annotated[
        Text, typer.Option(help="Time in which requests are sent, per stage.", rich_help_panel=_LOAD)
    ] = None,
    warmup: Annotated[
        int,
        typer.Option(
            help="Requests before the first stage, not counted.", rich_help_panel=_LOAD, **count("--warmup", least=0)
        ),
    ] = 4,
    input_tokens: Annotated[
        str,
        typer.Option(
            help="Law of prompt lengths: 512, uniform:64:900, normal:1200, lognormal:6.6:0.98, azure-conv, "
            "azure-code, mooncake-conversation, mooncake-synthetic.",
            rich_help_panel=_WORDS,
        ),
    ] = "128",
    output_tokens: Annotated[str, typer.Option(help="Law of output lengths, likewise.", rich_help_panel=_WORDS)] = "64",
    lengths_from: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Draw (prompt, output) pairs from a trace instead.", rich_help_panel=_WORDS),
    ] = None,
    scale_lengths_to: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            help="One factor for all lengths of a trace, so that prompt + output fit this context; "
            "generated prompts are cut to fit.",
            rich_help_panel=_WORDS,
            **count("--scale-lengths-to", least=2),
        ),
    ] = None,
    ignore_eos: Annotated[
        bool,
        typer.Option("--ignore-eos/--no-ignore-eos", help="Ask for the full output length.", rich_help_panel=_WORDS),
    ] = True,
    temperature: Annotated[float, typer.Option(min=0, max=2, rich_help_panel=_WORDS)] = 0.0,
    turns: Annotated[
        int,
        typer.Option(
            help="Closed loop: turns per conversation, history resent.",
            rich_help_panel=_USERS,
            **count("--turns", least=1),
        ),
    ] = 1,
    think: Annotated[str, typer.Option(help="Pause between turns.", rich_help_panel=_USERS)] = "0s",
    cancel_fraction: Annotated[
        float, typer.Option(min=0, max=1, help="Share of users who leave in mid-answer.", rich_help_panel=_USERS)
    ] = 0.0,
    retry: Annotated[
        int,
        typer.Option(
            help="Times a 429 or 503 is tried again, after Retry-After.",
            rich_help_panel=_USERS,
            **count("--retry", least=0),
        ),
    ] = 0,
    timeout: Annotated[str, typer.Option(help="Longest a request may take.", rich_help_panel=_USERS)] = "600s",
    max_connections: Annotated[
        int,
        typer.Option(
            help="Open connections; waiting for one counts as send delay.",
            rich_help_panel=_USERS,
            **count("--max-connections", least=1),
        ),
    ] = 900,
    seed: Annotated[int, typer.Option(min=0, help="Of lengths, times and prompts.", rich_help_panel=_USERS)] = 0,
    slo_ttft: Annotated[Text, typer.Option(help="Goodput: TTFT at most this (500ms).", rich_help_panel=_OUTPUT)] = None,
    slo_tpot: Annotated[Text, typer.Option(help="Goodput: TPOT at most this.", rich_help_panel=_OUTPUT)] = None,
    slo_e2e: Annotated[
        Text, typer.Option(help="Goodput: end-to-end latency at most this.", rich_help_panel=_OUTPUT)
    ] = None,
    slo_token_rate: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            help="Goodput as DeepSpeed-FastGen defines it: this many tokens/s on moving average.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on stdout.", rich_help_panel=_OUTPUT)
    ] = False,
    report: Annotated[Optional[Path], typer.Option(help="Write an HTML report.", rich_help_panel=_OUTPUT)] = None,  # noqa: UP045
    out: Annotated[Path | None, typer.Option(help="Write one JSON line per request.", rich_help_panel=_OUTPUT)] = None,
) -> None:
    """Measure a server under load: TTFT, TPOT, ITL, goodput, and how honest the load was.

    One of --rate, --rates, --load, --concurrency or --find-capacity sets the pace; a --trace alone keeps its own
    times, and nothing at all sends one request at a time. With --offline there is no server and no pace: lengths alone.
    """
    pace = [
        name
        for name, given in (("rate", rate), ("rates", rates), ("load", load), ("concurrency", concurrency))
        if given
    ]
    if len(pace) > 1:
        raise BadInput(field="--" + pace[1], value=True, why=f"--{pace[0]} sets the pace already", remedy="one of them")
    require_effect(context, BENCH)
    if offline:
        from penstock.cli.bench_offline import without_server

        without_server(
            pace, trace=_trace(trace, dequantise, seed, scale_lengths_to), requests=requests, model=model, dtype=dtype,
            workload=_workload(input_tokens, output_tokens, lengths_from, seed, scale_lengths_to), threads=threads,
            token_budget=token_budget, peak=peak, seed=seed, as_json=as_json, out=out,
        )  # fmt: skip
        return
    if url is None:
        raise BadInput(field="--url", value=None, why="there is no server to measure", remedy="--url, or --offline")
    if concurrency is None and turns > 1:
        raise BadInput(
            field="--turns", value=turns, why="turns need users who wait for answers", remedy="--concurrency 8"
        )
    arrivals(shape, 1.0, cv=cv)  # a bad law is a usage error before anything is sent
    requested = _numbers("--rates", rates) if rates else _numbers("--rate", rate) if rate else ()
    loads = _numbers("--load", load) if load else ()
    loaded = _trace(trace, dequantise, seed, scale_lengths_to)
    alone = not (pace or find_capacity or trace)
    result = _run(
        BenchSettings(
            url=url,
            workload=_workload(input_tokens, output_tokens, lengths_from, seed, scale_lengths_to),
            trace=loaded,
            api=_api(endpoint),
            model=model,
            api_key=api_key,
            vocab_size=vocab_size,
            temperature=temperature,
            ignore_eos=ignore_eos,
            rates=requested,
            loads=loads,
            concurrency=1 if alone else concurrency,
            find_capacity=find_capacity,
            capacity_stage_s=_seconds("--capacity-stage", capacity_stage),
            max_concurrency=max_concurrency,
            shape=shape,
            cv=cv,
            speed=speed,
            requests=requests,
            duration_s=_seconds("--duration", duration) if duration else None,
            turns=turns,
            think_s=_seconds("--think", think),
            cancel_fraction=cancel_fraction,
            retries=retry,
            warmup=warmup,
            timeout_s=_seconds("--timeout", timeout),
            max_connections=max_connections,
            seed=seed,
            limits=Limits(
                ttft_s=_seconds("--slo-ttft", slo_ttft) if slo_ttft else None,
                tpot_s=_seconds("--slo-tpot", slo_tpot) if slo_tpot else None,
                e2e_s=_seconds("--slo-e2e", slo_e2e) if slo_e2e else None,
                token_rate=slo_token_rate,
            ),
        )
    )
    # The result first: a file that cannot be written must not lose it.
    show(result, as_json)
    stages = (*result.search, *result.stages)
    if out is not None:
        write_requests(out, stages)
    if report is not None:
        write_text(report, html_report(stages, title=f"penstock bench: {result.endpoint.model}"), field="--report")
    raise typer.Exit(130 if result.interrupted else 0 if result.ok else 1)


def _run(settings: BenchSettings) -> BenchResult:
    so_far: list[BenchResult] = []
    with progress_shown() as progress:
        try:
            result: BenchResult = run_async(lambda: run_bench(settings, progress, on_interrupt=so_far.append))
        except KeyboardInterrupt:
            if not so_far:
                raise typer.Exit(130) from None
            result = so_far[0]
    return result


def _trace(path: Path | None, dequantise: bool, seed: int, context_tokens: int | None) -> Trace | None:
    if path is None:
        return None
    trace = read_trace(path, dequantise=dequantise, seed=seed)
    return trace if context_tokens is None else trace.fit(context_tokens)


def _workload(prompt: str, output: str, rows: Path | None, seed: int, context_tokens: int | None) -> Workload:
    if rows is not None:
        source = read_trace(rows, seed=seed)
        source = source if context_tokens is None else source.fit(context_tokens)
        return Workload(rows=Bootstrap(source), context_tokens=context_tokens)
    return Workload(
        prompt=parse_lengths(prompt, field="--input-tokens", output=False),
        output=parse_lengths(output, field="--output-tokens", output=True),
        context_tokens=context_tokens,
    )


def _api(name: str) -> Literal["completions", "chat"]:
    if name == "completions":
        return "completions"
    if name == "chat":
        return "chat"
    raise BadInput(field="--endpoint", value=name, why="no such endpoint", remedy="completions or chat")


def _numbers(flag: str, text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or not all(0 < value < float("inf") for value in values):
        raise BadInput(field=flag, value=text, why="not a list of positive numbers", remedy="such as 2 or 1,2,4")
    return values


def _seconds(flag: str, text: str) -> float:
    try:
        return parse_seconds(text)
    except ValueError as error:
        raise BadInput(field=flag, value=text, why=str(error), remedy="such as 30s") from None

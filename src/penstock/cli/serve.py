"""`penstock serve`: a model over HTTP until SIGTERM."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import signal
import time
from importlib import import_module
from typing import Annotated, Final

import typer
from rich.markup import escape

from penstock.cli.began import process_began
from penstock.cli.console import Narrator, narrator
from penstock.cli.descriptors import raise_limit
from penstock.cli.flags import FileOption, ModelArgument, load, with_flags_of
from penstock.cli.loading import Loading
from penstock.deployment import Deployment, is_loopback
from penstock.observe.logs import configure
from penstock.runtime.facts import ModelInfo

_USER: Final = re.compile(r"//[^/@]*@")
STEPS_TO_WORKER: Final = 4
"""Of the event loop, from the start of a service until its worker is a process: two, and some to spare."""


@with_flags_of("serve")
def serve(
    model: ModelArgument = None,
    file: FileOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved deployment file and end.")] = False,
    **flags: str | None,
) -> None:
    """Serve a model over HTTP, with the API that OpenAI clients speak.

    Without anything, the model in the box is served on 127.0.0.1:8000. Every key of the deployment file is a flag, and
    an environment variable: --policy.max-seqs 8 is PENSTOCK_POLICY__MAX_SEQS=8. Flags win over the environment, and
    the environment over the file. Sizes and times may be written as 25k, 32Ki, 2GiB, 30s.
    """
    deployment = load(file, model, flags, reader="serve")
    if dry_run:
        typer.echo(resolved(deployment), nl=False)
        return
    configure(deployment.server.log_format)
    raise_limit()
    with asyncio.Runner(loop_factory=event_loop) as runner:
        runner.run(_serve(deployment, narrator(deployment.server.log_format)))


def resolved(deployment: Deployment) -> str:
    """The deployment as YAML; keys that clients must send, and a collector's password, are not shown, since logs keep
    what is printed."""
    server = deployment.server
    hidden: dict[str, object] = {"api_keys": ("<hidden>",) * len(server.api_keys)}
    if server.trace_endpoint is not None:
        hidden["trace_endpoint"] = _USER.sub("//<hidden>@", server.trace_endpoint)
    return deployment.model_copy(update={"server": server.model_copy(update=hidden)}).to_yaml()


def event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's where there is one, which is everywhere but on Windows."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


async def _serve(deployment: Deployment, console: Narrator) -> None:
    began = process_began()
    told_s = 0.0
    loading = Loading(console)

    def show(name: str, seconds: float, detail: str) -> None:
        console.print(f"[dim]{name:<15}{seconds:8.3f} s  {escape(detail)}[/]")

    def show_phase(name: str, seconds: float, detail: str) -> None:
        """Phases follow one another without a gap, from the start of this process until it is ready."""
        nonlocal told_s
        told_s += seconds
        loading.over()
        show(name, seconds, detail)

    from penstock.runtime.service import Service
    from penstock.runtime.size import size_up

    show_phase("start", time.monotonic() - began, "Python, command line")
    fits = size_up(deployment)  # before anything is loaded: what cannot work is refused at once
    show_phase("check", time.monotonic() - began - told_s, f"{fits.path.name} fits into memory")
    starting = asyncio.create_task(Service.start(deployment, show_phase, loading.read))
    stop_asked = asyncio.Event()

    def stop() -> None:
        stop_asked.set()
        starting.cancel()  # one that is ready by now drains as soon as it listens

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
    for _ in range(STEPS_TO_WORKER):  # so that it loads the model while this process loads the HTTP side
        await asyncio.sleep(0)
    from penstock.cli.hosting import app_for, text_side_of
    from penstock.serve.preflight import check
    from penstock.serve.server import listen, run, settle
    from penstock.serve.starting import Starting
    from penstock.serve.upkeep import Upkeep

    began_front = time.monotonic()
    try:
        sock = listen(deployment.server.host, deployment.server.port)
        answering = Starting(sock, certificate=deployment.server.tls_certificate, key=deployment.server.tls_key)
        check(deployment)
        text = text_side_of(deployment)
        import_module("penstock.serve.app")  # now, while the worker loads, and not when it is ready

        show("  front end", time.monotonic() - began_front, "meanwhile: socket, tokenizer, chat template, routes")
    except BaseException:
        starting.cancel()
        raise
    try:
        service = await starting
    except asyncio.CancelledError:
        sock.close()
        console.print("stopped before the model was loaded")
        return
    finally:
        loading.over()
        answering.close()
    info = service.info

    def show_ready(url: str) -> None:
        ready_s = time.monotonic() - began
        show_phase("listen", ready_s - told_s, "HTTP")
        console.print(_ready_line(url, info, ready_s))
        if deployment.server.dashboard:
            console.print(f"page at {url}/: chat and live figures")
        if upkeep.admin_url is not None:
            console.print(f"administration at {upkeep.admin_url}/admin")
        if not deployment.server.locked:
            console.print(_open_line(deployment.server.host))
        console.print(escape(_curl(url, info, deployment.server.locked, text.template is not None)))

    def show_draining() -> None:
        console.print(
            f"stopping: {service.in_flight} running requests get up to {deployment.server.drain_timeout:g} s; "
            "a second signal stops at once"
        )

    try:
        app = app_for(service, deployment, text)
        upkeep = Upkeep(app, deployment)
    except BaseException:
        await service.close()
        raise
    if stop_asked.is_set():
        upkeep.drain.set()
    settle()
    cut_off = await run(
        app, service, deployment, sock=sock, on_listening=show_ready, on_draining=show_draining, upkeep=upkeep
    )
    if app.state.tracer is not None:
        await asyncio.to_thread(app.state.tracer.close)
    console.print(f"stopped; {cut_off} requests were cut off" if cut_off else "stopped")


def _ready_line(url: str, info: ModelInfo, seconds: float) -> str:
    return (
        f"[bold green]ready[/] {url}  model {escape(info.name)} ({info.parameters / 1e6:,.1f}M parameters, "
        f"{info.dtype}, checkpoint {info.checkpoint}, {info.fingerprint}), "
        f"context {info.max_sequence_tokens:,} tokens, KV {info.kv_capacity_tokens:,} tokens, "
        f"started in {seconds:.1f} s"
    )


def _open_line(host: str) -> str:
    if is_loopback(host):
        return "[yellow]open[/]: no key is set, so every program on this machine may use it (penstock key new)"
    return "[bold red]open to everyone[/] who can reach this address: no key is set (penstock key new)"


def _curl(url: str, info: ModelInfo, needs_key: bool, can_chat: bool) -> str:
    key = " -H 'Authorization: Bearer YOUR_KEY'" if needs_key else ""
    asked: dict[str, object] = {"model": info.name}
    asked |= {"messages": [{"role": "user", "content": "Hello"}]} if can_chat else {"prompt": "Hello", "max_tokens": 64}
    body = json.dumps(asked, ensure_ascii=False)
    path = "/v1/chat/completions" if can_chat else "/v1/completions"
    return f"curl {url}{path}{key} -H 'Content-Type: application/json' -d {shlex.quote(body)}"

"""`penstock chat`: a conversation in the terminal, with a server elsewhere or one of its own.

Answers go to stdout, everything else to stderr, so that `echo "Hello" | penstock chat > answer.txt` works.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Optional

import typer
from rich.console import Console
from rich.markup import escape

from penstock.cli.console import stderr
from penstock.cli.counts import count
from penstock.cli.flags import FileOption, ModelArgument, load
from penstock.deployment import Deployment
from penstock.errors import BadInput, PenstockError

_OPEN: Final = {
    "host": "127.0.0.1", "port": 0, "api_keys": (), "keys": (), "key_file": None, "tls_certificate": None,
    "tls_key": None, "allow_public_without_key": False,
}  # fmt: skip
"""Its own server answers its own process; what a file says of clients is for others."""
_TOKENS: Final = ("content", "reasoning_content", "reasoning")
"""Fields of a delta that tokens fill; servers differ in the name for thoughts."""
HELP: Final = "/reset starts over, /exit ends, Ctrl-C stops an answer"


def chat(
    model: ModelArgument = None,
    file: FileOption = None,
    url: Annotated[
        Optional[str], typer.Option(help="A running server, such as http://127.0.0.1:8000; default: start one.")  # noqa: UP045
    ] = None,
    api_key: Annotated[str, typer.Option(envvar="PENSTOCK_API_KEY", help="Key for --url, if it needs one.")] = "",
    system: Annotated[str, typer.Option(help="A system message to begin with.")] = "",
    max_tokens: Annotated[int, typer.Option(help="Longest answer.", **count("--max-tokens", least=1))] = 512,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0, help="0 is greedy.")] = 0.7,
    seed: Annotated[Optional[int], typer.Option(help="Makes answers repeatable.")] = None,  # noqa: UP045
) -> None:
    """Talk to a model in the terminal.

    In the conversation, /reset starts over and /exit ends; Ctrl-C stops an answer.
    """
    if url is not None and (model is not None or file is not None):
        raise BadInput(
            field="--url", value=url, why="the server there has its model and settings already",
            remedy="leave out --url, or leave out MODEL and --file",
        )  # fmt: skip
    console = stderr()
    with nullcontext(url) if url is not None else _own_server(console, model, file) as base:
        conversation = Conversation(
            base.rstrip("/"),
            api_key,
            {"max_completion_tokens": max_tokens, "temperature": temperature, "seed": seed},
            system,
        )
        _talk(conversation, console)


@dataclass(slots=True)
class Answer:
    """What a stream told, beside its text. Times are from the request to the first and the last piece, thoughts
    included: they are tokens as well."""

    ttft_s: float | None = None
    total_s: float = 0.0
    tokens: int = 0
    cached_tokens: int = 0

    def line(self) -> str:
        """For people: tokens per second are those after the first."""
        if self.ttft_s is None:
            return "no answer"
        decode_s = self.total_s - self.ttft_s
        rate = f", {(self.tokens - 1) / decode_s:,.0f} tokens/s" if self.tokens > 1 and decode_s > 0 else ""
        return (
            f"first token after {self.ttft_s * 1e3:,.0f} ms, {self.tokens} tokens{rate}, "
            f"{self.cached_tokens} prompt tokens cached"
        )


@dataclass(slots=True)
class Conversation:
    """Messages so far, and the server that continues them."""

    base: str
    api_key: str
    options: dict[str, Any]
    system: str
    messages: list[dict[str, str]] = field(default_factory=list)

    def reset(self) -> None:
        self.messages.clear()

    def ask(self, text: str, answer: Answer) -> Iterator[str]:
        """Pieces of the answer as they arrive; `answer` is filled in on the way. What was said is remembered, also
        if the iterator is closed before its end.

        Raises PenstockError: the server cannot be reached, or refuses.
        """
        said: list[str] = []
        turn = [*self.messages, {"role": "user", "content": text}]
        try:
            for piece in self._stream(turn, answer):
                said.append(piece)
                yield piece
        finally:
            if said:
                self.messages = [*turn, {"role": "assistant", "content": "".join(said)}]

    def _stream(self, messages: list[dict[str, str]], answer: Answer) -> Iterator[str]:
        import httpx

        system = [{"role": "system", "content": self.system}] if self.system else []
        body = {"messages": [*system, *messages], "stream": True, "stream_options": {"include_usage": True}}
        body |= {key: value for key, value in self.options.items() if value is not None}
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        sent = time.monotonic()
        try:
            with httpx.stream(
                "POST", f"{self.base}/v1/chat/completions", json=body, headers=headers,
                timeout=httpx.Timeout(10.0, read=None),
            ) as response:  # fmt: skip
                if response.status_code != 200:
                    raise PenstockError(_refusal(response.status_code, response.read()))
                for line in response.iter_lines():
                    if not line.startswith("data: ") or line == "data: [DONE]":
                        continue
                    event = json.loads(line.removeprefix("data: "))
                    if "error" in event:
                        raise PenstockError(event["error"]["message"])
                    if usage := event.get("usage"):
                        answer.tokens = usage["completion_tokens"]
                        answer.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
                    for choice in event["choices"]:
                        delta = choice["delta"]
                        if any(delta.get(name) for name in _TOKENS):
                            answer.total_s = time.monotonic() - sent
                            answer.ttft_s = answer.ttft_s or answer.total_s
                        if piece := delta.get("content"):
                            yield piece
        except httpx.HTTPError as error:
            raise PenstockError(f"no answer from {self.base}: {error or type(error).__name__}") from None


def _refusal(status: int, body: bytes) -> str:
    try:
        return f"the server refused ({status}): {json.loads(body)['error']['message']}"
    except (ValueError, LookupError, TypeError):
        return f"the server refused with status {status}; is it a Penstock or OpenAI server?"


def _talk(conversation: Conversation, console: Console) -> None:
    terminal = sys.stdin.isatty()
    if terminal:
        console.print(f"[dim]{HELP}[/]")
        import readline  # noqa: F401 - gives input() line editing and history
    while True:
        try:
            text = input("> " if terminal else "").strip()
        except EOFError:
            return
        if text == "/exit":
            return
        if text == "/reset":
            conversation.reset()
            console.print("[dim]started over[/]")
        elif text.startswith("/"):
            console.print(f"[yellow]{escape(text)} is not known; {HELP}[/]")
        elif text:
            _show_answer(conversation, text, console, keep_going=terminal)


def _show_answer(conversation: Conversation, text: str, console: Console, *, keep_going: bool) -> None:
    answer = Answer()
    pieces = conversation.ask(text, answer)
    try:
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
    except KeyboardInterrupt:
        if not keep_going:
            raise
    except PenstockError as error:
        if not keep_going:
            raise
        console.print(f"[bold red]error:[/] {escape(str(error))}")
        return
    finally:
        pieces.close()  # type: ignore[attr-defined]
    sys.stdout.write("\n")
    sys.stdout.flush()
    console.print(f"[dim]{answer.line()}[/]")


def own_server(asked: Deployment) -> Deployment:
    """What was asked for, on a free port of this machine and without keys."""
    return Deployment.parse({**asked.model_dump(), "server": {**asked.server.model_dump(), **_OPEN}})


@contextmanager
def _own_server(console: Console, model: str | None, file: Any) -> Iterator[str]:
    from penstock.cli.hosting import in_background
    from penstock.cli.loading import Loading

    deployment = own_server(load(file, model, reader="chat"))
    loading = Loading(console)

    def show(name: str, seconds: float, detail: str) -> None:
        loading.over()
        console.print(f"[dim]{name} {seconds:.2f} s[/]")

    with in_background(deployment, show, loading.read) as url:
        yield url

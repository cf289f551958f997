"""CPU time of the front end per streamed token: `python tests/serve/measure_front_end.py [streams] [tokens]`.

With --floor the app is replaced by one that writes constant bytes; --uvloop and --profile do what they say.

The server process has the real app, uvicorn, detokeniser and `runtime.stream.Stream`; a timer stands in for the worker
and gives every stream one token per step, as one frame from the worker would. CPU seconds are those of the server
process alone (user + system), less those of an idle server over the same steps. The client is another process.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import resource
import sys
import time
from collections.abc import AsyncIterator
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from starlette.types import ASGIApp, Receive, Scope, Send

from penstock.control.request import Request
from penstock.control.step import Finished
from penstock.deployment import Deployment
from penstock.runtime.facts import Output
from penstock.runtime.stream import AtOnce, Stream
from penstock.serve.server import Server, listen, settings
from serve.scripted import ScriptedService, scripted_app

STEP_S = 0.02


class Stepping(ScriptedService):
    """All streams get a token every STEP_S."""

    def __init__(self, deployment: Deployment) -> None:
        super().__init__(deployment)
        self.streams: dict[str, Stream] = {}

    async def generate(
        self, request: Request, bounds: object = None, at_once: AtOnce | None = None
    ) -> AsyncIterator[Output]:
        stream = Stream(request, time.monotonic(), at_once)
        self.streams[request.id] = stream
        try:
            while True:
                output = await stream.next()
                yield output
                if output.finished is not None:
                    return
        finally:
            del self.streams[request.id]

    async def steps(self) -> None:
        while True:
            await asyncio.sleep(STEP_S)
            now = time.monotonic()
            for id, stream in self.streams.items():
                last = len(stream.output) + 1 == stream.request.max_tokens
                stream.push(97 + len(stream.output) % 26, None, now, last=last)
                if last:
                    stream.finish(Finished(id, "length"))


def bare_app(service: Stepping) -> ASGIApp:
    """The floor: constant bytes per token, through the same uvicorn and the same wake-up, and nothing else."""
    chunk = b'data: {"choices":[{"delta":{"content":"x"}}]}' + b" " * 200 + b"\n\n"

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        wanted = json.loads((await receive())["body"])["max_tokens"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        stream = Stream(Request(id=str(id(send)), prompt=(1,), max_tokens=wanted), time.monotonic())
        service.streams[stream.request.id] = stream
        while (await stream.next()).finished is None:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        del service.streams[stream.request.id]
        await send({"type": "http.response.body", "body": chunk + b'"content":"[DONE]'})

    return app


def serve(pipe: Connection) -> None:
    service = Stepping(Deployment())
    app = bare_app(service) if "--floor" in sys.argv else scripted_app(service)

    async def main() -> None:
        sock = listen("127.0.0.1", 0)
        tasks = [asyncio.create_task(Server(settings(app)).serve([sock])), asyncio.create_task(service.steps())]
        pipe.send(sock.getsockname()[1])
        while await asyncio.to_thread(pipe.recv):
            used = resource.getrusage(resource.RUSAGE_SELF)
            pipe.send((used.ru_utime, used.ru_stime))
        for task in tasks:
            task.cancel()

    if "--uvloop" in sys.argv:
        import uvloop

        uvloop.run(main())
    elif "--profile" in sys.argv:
        import cProfile

        cProfile.runctx("asyncio.run(main())", globals(), locals(), sort="tottime")
    else:
        asyncio.run(main())


async def ask(port: int, tokens: int) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = json.dumps(
        {"messages": [{"role": "user", "content": "x"}], "stream": True, "max_tokens": tokens, "ignore_eos": True}
    ).encode()
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        b"connection: close\r\n"
        b"content-length: %d\r\n\r\n%s" % (len(body), body)
    )
    raw = await reader.read(-1)
    writer.close()
    assert b"[DONE]" in raw
    return raw.count(b'"content":"') - 1


def main() -> None:
    numbers = [int(one) for one in sys.argv[1:] if one.isdigit()]
    streams, tokens = (*numbers, 64, 300)[:2] if not numbers else (*numbers, 300)[:2]
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(theirs,))
    server.start()
    port = ours.recv()

    def cpu_s() -> tuple[float, float]:
        """User and system seconds of the server so far."""
        ours.send(True)
        seconds: tuple[float, float] = ours.recv()
        return seconds

    async def all_of_them() -> int:
        return sum(await asyncio.gather(*(ask(port, tokens) for _ in range(streams))))

    asyncio.run(all_of_them())
    before = cpu_s()
    time.sleep(tokens * STEP_S)
    idle = [after - start for start, after in zip(before, cpu_s(), strict=True)]
    results = []
    for _ in range(5):
        before = cpu_s()
        received = asyncio.run(all_of_them())
        after = cpu_s()
        used = [end - start - rest for start, end, rest in zip(before, after, idle, strict=True)]
        results.append([round(one / received * 1e6, 1) for one in used])
    ours.send(False)
    server.join(10)
    best = min(results, key=sum)
    print(
        json.dumps({"streams": streams, "tokens": received, "user_us": best[0], "system_us": best[1], "all": results})
    )


if __name__ == "__main__":
    main()

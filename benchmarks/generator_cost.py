"""What one token event costs the load generator, in CPU microseconds: our client and httpx, on the same server.

The generator shares the machine with the server under test, so its cost is part of every measurement. A scripted
server in its own process sends `--streams` answers of `--tokens` events as fast as they are taken, one event per
write. CPU time is this process's own (user + system), server excluded.

    python benchmarks/generator_cost.py

The last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import subprocess
import sys
import time

import httpx

from penstock.workload.client import Client, Target, run_async

SERVER = """
import asyncio, json, sys
EVENT = b'data: ' + json.dumps({"id": "cmpl-0123456789abcdef", "object": "text_completion", "created": 1700000000,
    "model": "millrace", "system_fingerprint": "fp_0123456789", "choices": [{"index": 0, "text": " word",
    "logprobs": None, "finish_reason": None}], "usage": None}).encode() + b'\\n\\n'
async def serve(reader, writer):
    try:
        while True:
            head = await reader.readuntil(b"\\r\\n\\r\\n")
            length = int(head.lower().split(b"content-length:")[1].split(b"\\r\\n")[0])
            await reader.readexactly(length)
            writer.write(b"HTTP/1.1 200 OK\\r\\ncontent-type: text/event-stream\\r\\n")
            writer.write(b"transfer-encoding: chunked\\r\\n\\r\\n")
            chunk = b"%x\\r\\n%s\\r\\n" % (len(EVENT), EVENT)
            for _ in range(int(sys.argv[2])):
                writer.write(chunk)
                await writer.drain()
                await asyncio.sleep(float(sys.argv[3]))
            end = b"data: [DONE]\\n\\n"
            writer.write(b"%x\\r\\n%s\\r\\n0\\r\\n\\r\\n" % (len(end), end))
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]))
    print("ready", flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


async def with_ours(url: str, streams: int, concurrency: int) -> int:
    client = Client(Target.parse(url))
    gate = asyncio.Semaphore(concurrency)

    async def one() -> int:
        async with gate:
            return len((await client.send("/v1/completions", b"{}")).token_s)

    events = sum(await asyncio.gather(*(one() for _ in range(streams))))
    client.close()
    return events


async def with_httpx(url: str, streams: int, concurrency: int) -> int:
    gate = asyncio.Semaphore(concurrency)
    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    async with httpx.AsyncClient(timeout=600, limits=limits, trust_env=False) as client:

        async def one() -> int:
            times = []
            async with gate, client.stream("POST", url + "/v1/completions", content=b"{}") as response:
                async for line in response.aiter_lines():
                    if line.startswith("data: ") and line != "data: [DONE]":
                        event = json.loads(line[6:])
                        if event["choices"] and event["choices"][0]["text"]:
                            times.append(time.perf_counter())
            return len(times)

        return sum(await asyncio.gather(*(one() for _ in range(streams))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--gap-s", type=float, default=0.01, help="seconds between the tokens of one stream")
    options = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [sys.executable, "-c", SERVER, str(port), str(options.tokens), str(options.gap_s)]
    server = subprocess.Popen(arguments, stdout=subprocess.PIPE)
    result = {}
    try:
        assert server.stdout is not None
        server.stdout.readline()
        for name, client in (("penstock", with_ours), ("httpx", with_httpx)):
            cpu, wall = time.process_time(), time.perf_counter()
            events = run_async(lambda run=client: run(f"http://127.0.0.1:{port}", options.streams, options.concurrency))
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            result[name] = {
                "events": events,
                "cpu_us_per_event": round(1e6 * cpu / events, 1),
                "wall_s": round(wall, 2),
            }
            print(f"{name:10} {events} events, {1e6 * cpu / events:6.1f} us CPU each, {wall:.1f} s", file=sys.stderr)
    finally:
        server.terminate()
        server.wait()
    print(json.dumps(result))


if __name__ == "__main__":
    main()

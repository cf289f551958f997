"""Show 3: fuzzed requests against a real, running server: `make fuzz`, or `python tests/serve/fuzz_server.py --help`.

`penstock serve` runs as it is shipped, with the model in the box. Hypothesis makes a pool of bodies from the request
schemas (strategies.py); each request is one of them with fields of others put in, some with bytes damaged; beside them
go raw bytes that are no HTTP, and clients that hang up in the middle; and a few go to the administration, where an
adapter is loaded and unloaded all the time. That multiplies the pool: hypothesis itself makes
some hundred bodies a second, the server answers more. Same seed, same requests, in another order.

What must hold: no answer is 5xx; the worker is never replaced; a known request gives the same tokens after every
thousand; every path but embeddings (the model has none) let something through, so that more than refusals was tried;
the memory that each process wrote (pages that no file backs) is flat: its median over the last fifth of the run against
that over the second. (Before, pages that a forked worker shares become its own, and the KV pool is touched for the
first time.) The last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, Final
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).parents[1]))

from hypothesis import HealthCheck, Phase, given, seed, settings

from penstock.catalog import resolve_model
from penstock.testing.adapters import tiny_adapter
from serve.strategies import ADMIN_BY_PATH, BY_PATH, LONG, RAW, encoded

WEIGHTS: Final = {
    "/v1/chat/completions": 35, "/v1/completions": 35, "/v1/responses": 8, "/v1/messages": 8, "/v1/embeddings": 4,
    "/tokenize": 5, "/detokenize": 5, "/v1/messages/count_tokens": 4,
}  # fmt: skip
ADMIN_WEIGHTS: Final = {
    "/v1/load_lora_adapter": 3, "/v1/unload_lora_adapter": 3, "/admin/reset_prefix_cache": 1, "/admin/reload_keys": 1,
}  # fmt: skip
THREADS: Final = 4
REFERENCE: Final = b'{"prompt":"The river","max_tokens":8,"temperature":0,"ignore_eos":true,"return_token_ids":true}'
FLAT: Final = 0.05
"""Growth of a process's memory that counts as none."""


class Pool:
    """Bodies by path, and byte strings, from hypothesis."""

    def __init__(self, size: int, number: int) -> None:
        self.bodies: dict[str, list[dict[str, Any]]] = {
            path: _examples(strategy, max(20, size * (WEIGHTS | ADMIN_WEIGHTS)[path] // 100), number)
            for path, strategy in (BY_PATH | ADMIN_BY_PATH).items()
        }
        self.raw: list[bytes] = _examples(RAW, size // 8, number)


def _examples(strategy: Any, count: int, number: int) -> list[Any]:
    found: list[Any] = []

    @seed(number)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(example: Any) -> None:
        found.append(example)

    collect()
    return found


@dataclass(frozen=True, slots=True)
class Shot:
    """One request, ready to be sent. `path` empty: `body` is all there is on the wire."""

    path: str
    body: bytes
    hang_up: bool = False


def shots(pool: Pool, count: int, number: int, *, admin: bool = False) -> Iterator[Shot]:
    """`count` requests, each made of several of the pool's. `admin`: some for the administration's listener."""
    rng = random.Random(number)
    of_path = WEIGHTS | (ADMIN_WEIGHTS if admin else {})
    paths, weights = list(of_path), list(of_path.values())
    for _ in range(count):
        (path,) = rng.choices(paths, weights)
        kind = rng.random()
        if kind < 0.02:
            head = rng.choice([b"", b"GET / HTTP/1.1\r\n", b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"])
            yield Shot("", head + rng.choice(pool.raw) + rng.choice([b"", b"\r\n\r\n"]))
            continue
        if kind < 0.08:
            yield Shot(path, rng.choice(pool.raw))
            continue
        drawn = rng.choice(pool.bodies[path])
        if not isinstance(drawn, dict) or path.startswith("/admin/"):
            yield Shot(path, encoded(drawn))
            continue
        body = dict(drawn)
        for _ in range(rng.choice((0, 0, 1, 1, 2))):
            others = rng.choice(pool.bodies[path])
            body |= {name: value for name, value in others.items() if name not in LONG and rng.random() < 0.3}
        raw = encoded(body)
        if kind < 0.16:
            at, cut = rng.randrange(len(raw)), rng.randrange(4)
            raw = raw[:at] + rng.randbytes(rng.randrange(4)) + raw[at + cut :]
        yield Shot(path, raw, hang_up=kind > 0.98)


@dataclass
class Tally:
    """What came back."""

    by_path: dict[str, Counter[int]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    done: int = 0

    def add(self, path: str, status: int, problem: str = "") -> None:
        """`status` 0: no answer, as after hanging up."""
        with self.lock:
            self.done += 1
            self.by_path.setdefault(path or "raw bytes", Counter())[status] += 1
            if problem and len(self.wrong) < 20:
                self.wrong.append(problem)
                print("WRONG", problem, file=sys.stderr, flush=True)


class Client:
    """One keep-alive connection to each listener."""

    def __init__(self, url: str, admin_url: str | None) -> None:
        self.address = _address(url)
        self.listener = http.client.HTTPConnection(*self.address, timeout=300)
        self.administration = (
            None if admin_url is None else http.client.HTTPConnection(*_address(admin_url), timeout=300)
        )

    def send(self, shot: Shot, tally: Tally) -> None:
        if not shot.path or shot.hang_up:
            tally.add(shot.path, self._briefly(shot))
            return
        connection = self.administration if shot.path in ADMIN_WEIGHTS else self.listener
        assert connection is not None
        for attempt in range(2):
            try:
                connection.request("POST", shot.path, shot.body, {"Content-Type": "application/json"})
                reply = connection.getresponse()
                answer = reply.read()
                break
            except (http.client.HTTPException, OSError) as error:
                connection.close()
                if attempt:
                    tally.add(shot.path, 0, f"no answer to {shot.path} {shot.body[:2000]!r}: {error!r}")
                    return
        tally.add(shot.path, reply.status, problem_in(shot, reply.status, reply.headers, answer))

    def _briefly(self, shot: Shot) -> int:
        """Bytes on a connection of their own; the status of what came, 0 if nothing did."""
        head = b"POST %s HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        sent = head % (shot.path.encode(), len(shot.body)) + shot.body if shot.path else shot.body
        try:
            with socket.create_connection(self.address, timeout=10) as client:
                client.sendall(sent)
                client.settimeout(0.001 if shot.hang_up else 0.02)
                heard = client.recv(4096)
        except OSError:
            return 0
        status = re.match(rb"HTTP/1\.1 (\d{3}) ", heard)
        return int(status[1]) if status else 0


def _address(url: str) -> tuple[str, int]:
    return urlsplit(url).hostname or "", urlsplit(url).port or 0


def problem_in(shot: Shot, status: int, headers: Any, answer: bytes) -> str:
    """What is wrong with an answer; empty: nothing."""
    where = f"{shot.path} {shot.body[:300]!r}: {status} {answer[:300]!r}"
    if status >= 500:
        return where
    if not headers.get("x-request-id"):
        return f"no request id: {where}"
    try:
        if headers["content-type"].startswith("text/plain"):
            fine = status == 200 and answer.startswith(b"Success: ")
        elif status not in (200, 202):
            error = json.loads(answer)["error"]
            fine = set(error) == {"message", "type", "param", "code"}
        elif headers["content-type"].startswith("text/event-stream"):
            last = answer[:-2].rpartition(b"\n\n")[2] if answer.endswith(b"\n\n") else b""
            fine = last.startswith((b"data: [DONE]", b"event: message_stop", b"event: response.")) or b'"error"' in last
        else:
            fine = isinstance(json.loads(answer), dict)
    except (ValueError, KeyError):
        fine = False
    return "" if fine else f"malformed: {where}"


class RunningServer:
    """`penstock serve` and what it costs."""

    def __init__(self, *flags: str) -> None:
        program = [sys.executable, "-m", "penstock", "serve", "--server.port", "0", *flags]
        self.log: list[str] = []
        self.process = subprocess.Popen(program, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        self.ready = threading.Event()
        self.url = self.admin_url = ""
        threading.Thread(target=self._read, daemon=True).start()
        if not self.ready.wait(120):
            self.process.kill()
            raise SystemExit("the server did not start:\n" + "\n".join(self.log[-20:]))

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log = [*self.log[-200:], line.rstrip()]
            if found := re.search(r"administration at (http://\S+)/admin", line):
                self.admin_url = found[1]
            found = re.search(r"ready (http://\S+)", line)
            if found:
                self.url = found[1]
                self.ready.set()

    def memory_mb(self) -> dict[str, float]:
        """What each process of the tree wrote, by role, what they share counted once. Millions of bytes."""
        found = {"front end": self.process.pid}
        for pid in self._below(self.process.pid):
            name = f"worker {len(found)}" if self._below(pid) == [] else f"fork server {len(found)}"
            found[name] = pid
        return {name: _written(pid) / 1e6 for name, pid in found.items()}

    def _below(self, pid: int) -> list[int]:
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except OSError:
            return []
        return [one for child in map(int, children) for one in (child, *self._below(child))]

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(60)


def _written(pid: int) -> int:
    # Without the pages of libraries: their share falls and rises with other programs that map the same files.
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(size) * 1024 for size in re.findall(r"^Pss_(?:Anon|Shmem):\s+(\d+) kB", text, re.MULTILINE))


def ask(url: str, method: str, path: str, body: bytes | None = None) -> bytes:
    """An answer's body, over a connection of its own."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    connection.request(method, path, body, {"Content-Type": "application/json"})
    answer = connection.getresponse().read()
    connection.close()
    return answer


def reference(url: str) -> list[int]:
    """Tokens of the known request."""
    choice = json.loads(ask(url, "POST", "/v1/completions", REFERENCE))["choices"][0]
    return [int(token) for token in choice["token_ids"]]


def fuzz(url: str, pool: Pool, count: int, number: int, every: Any = None, *, admin_url: str | None = None) -> Tally:
    """Send `count` requests from several threads; call `every(done)` after each thousand, while nothing runs."""
    tally, source, lock = Tally(), shots(pool, count, number, admin=admin_url is not None), threading.Lock()
    expected = reference(url)

    def some(batch: list[Shot], client: Client) -> None:
        while True:
            with lock:
                if not batch:
                    return
                shot = batch.pop()
            client.send(shot, tally)

    clients = [Client(url, admin_url) for _ in range(THREADS)]
    while batch := list(islice(source, 1000)):
        threads = [threading.Thread(target=some, args=(batch, client)) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if reference(url) != expected:
            tally.wrong.append(f"after {tally.done} requests the known one gives other tokens")
        if every is not None:
            every(tally.done)
    return tally


def main() -> None:
    """Run it, show it, exit 1 if anything that must hold does not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--pool", type=int, default=4_000, help="bodies that hypothesis makes")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    started = time.monotonic()
    pool = Pool(asked.pool, asked.seed)
    made_s = time.monotonic() - started
    print(f"pool of {sum(map(len, pool.bodies.values()))} bodies in {made_s:.0f} s", file=sys.stderr)
    directory = tempfile.TemporaryDirectory()
    tiny_adapter(resolve_model("millrace"), Path(directory.name) / "one")
    server = RunningServer(
        "--hardware.threads", "1", "--memory.kv-bytes", "32MiB", "--server.admin-port", "0",
        "--model.adapter-directory", directory.name,
    )  # fmt: skip
    samples: list[tuple[int, dict[str, float], int]] = []

    def sample(done: int) -> None:
        samples.append((done, server.memory_mb(), server.descriptors()))
        if done % 10_000 < 1000:
            used = ", ".join(f"{name} {size:.0f} MB" for name, size in samples[-1][1].items())
            print(f"{done:>8} requests, {time.monotonic() - started:.0f} s: {used}", file=sys.stderr)

    began = time.monotonic()
    try:
        while not server.admin_url:
            time.sleep(0.01)
        tally = fuzz(server.url, pool, asked.requests, asked.seed, sample, admin_url=server.admin_url)
    except BaseException:
        server.process.kill()
        raise
    seconds = time.monotonic() - began
    ready = json.loads(ask(server.url, "GET", "/ready"))
    exit_code = server.stop()
    directory.cleanup()
    fifth = max(1, len(samples) // 5)
    warm, last = samples[fifth : 2 * fifth] or samples, samples[-fifth:]
    names = [name for name in samples[-1][1] if all(name in one[1] for one in (*warm, *last))]
    memory = {name: [median(one[1][name] for one in part) for part in (samples[:1], warm, last)] for name in names}
    growth = {name: after / before - 1 for name, (_, before, after) in memory.items()}
    descriptors = [samples[0][2], last[-1][2]]
    statuses: Counter[int] = sum(tally.by_path.values(), Counter())
    for path, counts in tally.by_path.items():
        print(f"{path:<22}", "  ".join(f"{status}: {many}" for status, many in sorted(counts.items())))
    print(f"\n{'memory written, MB':<22}{'start':>10}{'2nd fifth':>12}{'last fifth':>12}{'growth':>9}")
    for name, (start, before, after) in memory.items():
        print(f"{name:<22}{start:>10.1f}{before:>12.1f}{after:>12.1f}{growth[name]:>9.1%}")
    print(f"descriptors of the front end: {descriptors}; workers replaced: {ready['restarts']}")
    taken = {path for path, counts in tally.by_path.items() if any(200 <= status < 300 for status in counts)}
    vain = sorted((WEIGHTS | ADMIN_WEIGHTS).keys() - taken - {"/v1/embeddings"})
    if vain:
        print(f"WRONG nothing got through to {', '.join(vain)}: only refusals were tried there")
    for problem in tally.wrong:
        print("WRONG", problem)
    result = {
        "requests": tally.done, "seconds": round(seconds, 1),
        "statuses": {str(status): many for status, many in sorted(statuses.items())},
        "server_errors": sum(many for status, many in statuses.items() if status >= 500),
        "wrong": len(tally.wrong), "vain": vain,
        "restarts": ready["restarts"],
        "memory_mb": {name: [round(size, 1) for size in sizes] for name, sizes in memory.items()},
        "growth": {name: round(value, 4) for name, value in growth.items()},
        "descriptors": descriptors, "exit_code": exit_code,
    }  # fmt: skip
    print(json.dumps(result))
    bad = (
        result["server_errors"] or tally.wrong or vain or ready["restarts"] or exit_code or max(growth.values()) > FLAT
    )
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()

"""Limits of a tenant, as its keys set them: requests at once, requests and tokens per minute, share of the KV memory.

Rates are token buckets that hold a minute's worth and fill steadily. Prompt tokens are taken on entry, output tokens
when they are made, so a bucket may go below nothing and the next request waits for that. What is refused before its
first token (a full queue, a model that is away, a deadline that passed) costs nothing. A tenant without limits costs a
look into a dictionary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from time import monotonic
from typing import Final

from penstock.control.request import Request
from penstock.deployment import Key
from penstock.errors import DeadlinePassed, InvalidRequest, Overloaded, Unavailable

Header = tuple[bytes, bytes]
_MINUTE_S: Final = 60.0
_MIN_RETRY_S: Final = 0.05
_NOTHING: Final = nullcontext()
_SEEN: Final = 1 / 8
"""Weight of one request in the mean time that they take."""


class Bucket:
    """What is left of a rate."""

    def __init__(self, per_minute: int, now: float) -> None:
        self.size, self.level, self._now = float(per_minute), float(per_minute), now

    def left(self, now: float) -> float:
        """Fills with time."""
        self.level = min(self.size, self.level + (now - self._now) * self.size / _MINUTE_S)
        self._now = now
        return self.level

    def wait_s(self, amount: float, now: float) -> float:
        """Until so much is in it; more than it can hold counts as all of it."""
        return max(min(amount, self.size) - self.left(now), 0.0) * _MINUTE_S / self.size


class _Books:
    """Of one tenant that has limits."""

    def __init__(self, now: float) -> None:
        self.concurrent = 0
        self.kv_tokens = 0
        self.took_s = 0.0
        self.requests: Bucket | None = None
        self.tokens: Bucket | None = None
        self._now = now

    def follow(self, key: Key, now: float) -> None:
        """Rates may have changed since."""
        self.requests = _bucket(self.requests, key.requests_per_minute, now)
        self.tokens = _bucket(self.tokens, key.tokens_per_minute, now)


class Quota:
    """All tenants' books. One thread: the event loop's."""

    def __init__(self, entitlement: Callable[[str], Key], clock: Callable[[], float] = monotonic) -> None:
        self._entitlement, self._clock = entitlement, clock
        self._books: dict[str, _Books] = {}

    def hold(
        self, requests: Sequence[Request], kv_capacity_tokens: int, made: Callable[[], int]
    ) -> AbstractContextManager[None]:
        """Run `requests`, of one tenant and one call, within this block. `made`: output tokens so far.

        Raises Overloaded: a limit was reached; InvalidRequest: no time would make room for it.
        """
        tenant = requests[0].tenant
        key = self._entitlement(tenant)
        return self._hold(requests, kv_capacity_tokens, made, tenant, key) if has_limits(key) else _NOTHING

    @contextmanager
    def _hold(
        self, requests: Sequence[Request], kv_capacity_tokens: int, made: Callable[[], int], tenant: str, key: Key
    ) -> Iterator[None]:
        now = self._clock()
        books = self._of(tenant, key, now)
        prompt_tokens = sum(len(one.prompt) for one in requests)
        kv_tokens = sum(len(one.prompt) + one.max_tokens for one in requests)
        self._require(books, key, len(requests), prompt_tokens, kv_tokens, kv_capacity_tokens, now)
        books.concurrent += len(requests)
        books.kv_tokens += kv_tokens
        _take(books.requests, len(requests))
        _take(books.tokens, prompt_tokens)
        refused = False
        try:
            yield
        except (Overloaded, Unavailable, DeadlinePassed):
            refused = not made()
            raise
        finally:
            books.concurrent -= len(requests)
            books.kv_tokens -= kv_tokens
            if refused:
                _take(books.requests, -len(requests))
                _take(books.tokens, -prompt_tokens)
            else:
                _take(books.tokens, made())
                books.took_s += _SEEN * (self._clock() - now - books.took_s)

    def count(self, tenant: str) -> None:
        """One request that generates nothing, for the tenant's rate of requests. Raises Overloaded."""
        key = self._entitlement(tenant)
        if key.requests_per_minute is None:
            return
        now = self._clock()
        books = self._of(tenant, key, now)
        self._require_rates(books, 1, 0, now)
        _take(books.requests, 1)

    def headers(self, tenant: str) -> list[Header]:
        """x-ratelimit-... of a tenant; none without limits on its rates."""
        key = self._entitlement(tenant)
        if not has_limits(key):
            return []
        now = self._clock()
        books = self._of(tenant, key, now)
        found: list[Header] = []
        for name, bucket in (("requests", books.requests), ("tokens", books.tokens)):
            if bucket is not None:
                values = {
                    "limit": f"{bucket.size:.0f}",
                    "remaining": f"{max(bucket.left(now), 0.0):.0f}",
                    "reset": f"{bucket.wait_s(bucket.size, now):.3f}s",
                }
                found += [(f"x-ratelimit-{what}-{name}".encode(), value.encode()) for what, value in values.items()]
        return found

    def _of(self, tenant: str, key: Key, now: float) -> _Books:
        books = self._books.get(tenant)
        if books is None:
            books = self._books[tenant] = _Books(now)
        books.follow(key, now)
        return books

    def _require(
        self, books: _Books, key: Key, count: int, prompt_tokens: int, kv_tokens: int, capacity: int, now: float
    ) -> None:
        most_kv = None if key.kv_share is None else int(key.kv_share * capacity)
        turn_s = books.took_s / max(books.concurrent, 1)
        checks = (
            ("max_concurrent", "requests at the same time", books.concurrent, count, key.max_concurrent, turn_s),
            (
                "kv_share",
                "tokens of KV memory, prompts and longest answers",
                books.kv_tokens,
                kv_tokens,
                most_kv,
                turn_s,
            ),
        )
        for name, what, used, more, most, wait_s in checks:
            if most is None or used + more <= most:
                continue
            if more > most:
                raise InvalidRequest(
                    field="max_tokens" if name == "kv_share" else "n", value=more,
                    why=f"your key's limit is {most} {what}", remedy="a smaller request", code="limit_exceeded",
                )  # fmt: skip
            raise _refusal(name, f"{used} of {most} {what} are in use", used, most, max(wait_s, _MIN_RETRY_S))
        self._require_rates(books, count, prompt_tokens, now)

    def _require_rates(self, books: _Books, count: int, prompt_tokens: int, now: float) -> None:
        for name, what, bucket, amount in (
            ("requests_per_minute", "requests", books.requests, count),
            ("tokens_per_minute", "tokens", books.tokens, prompt_tokens),
        ):
            if bucket is not None and amount and (wait_s := bucket.wait_s(amount, now)) > 0:
                used = round(bucket.size - bucket.level)
                text = f"{used} of {bucket.size:.0f} {what} per minute are used, and this needs {amount}"
                raise _refusal(name, text, used, round(bucket.size), max(wait_s, _MIN_RETRY_S))


def has_limits(key: Key) -> bool:
    """Whether anything of a tenant is counted here."""
    return not (
        key.max_concurrent is None
        and key.requests_per_minute is None
        and key.tokens_per_minute is None
        and key.kv_share is None
    )


def _bucket(bucket: Bucket | None, per_minute: int | None, now: float) -> Bucket | None:
    if per_minute is None:
        return None
    return bucket if bucket is not None and bucket.size == per_minute else Bucket(per_minute, now)


def _take(bucket: Bucket | None, amount: float) -> None:
    if bucket is not None:
        bucket.level = min(bucket.level - amount, bucket.size)


def _refusal(name: str, text: str, used: int, most: int, wait_s: float) -> Overloaded:
    return Overloaded(
        f"your limit {name}: {text}. Remedy: come back in {wait_s:.2f} s", retry_after_s=wait_s,
        code="rate_limit_exceeded",
        details={"reason": name, "own_usage": used, "own_limit": most, "retry_after_ms": round(wait_s * 1e3)},
    )  # fmt: skip

"""Who may come in: API keys, kept as SHA-256 and compared in constant time.

The check is a dependency of the routes themselves (`Depends(keys.tenant)`), not a rule about paths, so a route cannot
be reached around it. The tenant, whose share and whose cached prefixes a request uses, is the key's digest: nothing a
client can choose.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from starlette.requests import Request

from penstock.serve.errors import Refusal


class KeyRing:
    """The configured keys. Without any, everyone is the tenant ''."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    async def tenant(self, request: Request) -> str:
        """The tenant of a request: 16 hex digits of its key's SHA-256. Raises Refusal 401."""
        if not self._digests:
            return ""
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise Refusal(
                401, "invalid_api_key", "no API key was sent. Remedy: the header 'Authorization: Bearer <key>'"
            )
        digest = hashlib.sha256(key.strip().encode("latin-1")).digest()  # the bytes as they came
        # Every key is compared, so the time does not tell which one came close.
        known = [hmac.compare_digest(digest, one) for one in self._digests]
        if not any(known):
            raise Refusal(401, "invalid_api_key", "the API key is not known here. Remedy: ask the operator for a key")
        return digest.hex()[:16]

"""Who may come in: keys are kept as SHA-256, compared in constant time, and open what their scopes say.

The check is part of the routes themselves (`Depends(keys.tenant)`, `Endpoint.answer`), not a rule about paths, so a
route cannot be reached around it. The tenant, whose share and whose cached prefixes a request uses, follows from the
key: nothing a client can choose. A key file is read again when it changes; a key
that has gone from it is refused from then on.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from starlette.requests import Request

from penstock.deployment import Deployment, Key, Server
from penstock.deployment.access import Scope, check_keys, read_key_file
from penstock.errors import InvalidDeployment
from penstock.serve.errors import Refusal
from penstock.serve.quota import Quota, has_limits

OPEN: Final = Key(name="open", hash="sha256:" + "0" * 64, scopes=("inference", "admin", "metrics"))
"""Stands for everyone where no keys are configured; nothing hashes to it that is ever looked up."""

MODELS: Final = "penstock.models"
"""In a request's scope: the names its key may use, where it may not use all."""

_log = logging.getLogger("penstock.serve")


class KeyRing:
    """The configured keys. Without any, everyone is the tenant '' and may do everything."""

    def __init__(self, server: Server, *, order: str = "arrival") -> None:
        """`order`: that of the policy, for a key file's weights. Raises InvalidDeployment: the key file is wrong."""
        self._server, self._order = server, order
        self.locked = server.locked
        """Keys are asked for; also while the key file holds none."""
        self._keys: dict[bytes, Key] = {}
        """By digest."""
        self._tenants: dict[str, Key] = {}
        """The first entry of each: they agree on everything that concerns the tenant."""
        self.quota = Quota(self.entitlement)
        self._seen: tuple[int, int, int] | None = None
        self.reload()

    def reload(self) -> int:
        """Read the key file again. Returns how many keys are known. Raises InvalidDeployment; then nothing changed."""
        server = self._server
        seen = self._stamp()
        listed = read_key_file(server.key_file, order=self._order) if server.key_file is not None else ()
        check_keys((*listed, *server.keys), field="server.key_file", order=self._order)
        known = {bytes.fromhex(key.hash.removeprefix("sha256:")): key for key in (*listed, *server.keys)}
        taken = {name for key in known.values() for name in (key.name, key.owner)}
        for place, plain in enumerate(server.api_keys, 1):
            digest = hashlib.sha256(plain.encode()).digest()
            # The name stands in metrics and logs. It follows from the place: what follows from the key, as a piece of
            # its hash does, lets whoever reads them try short keys in peace.
            name = f"api-key-{place}"
            if name in taken:  # also a tenant that comes later must not find the prefixes of this one
                raise InvalidDeployment(
                    field="server.keys", value=name, why="the plain keys of server.api_keys are called like this",
                    remedy="another name",
                )  # fmt: skip
            known.setdefault(digest, Key(name=name, hash=f"sha256:{digest.hex()}", scopes=("inference", "metrics")))
        self._keys, self._seen = known, seen
        self._tenants = {key.owner: key for key in reversed(known.values())}
        return len(known)

    def refresh(self) -> None:
        """Reload if the key file has changed; a file that is wrong is told in the log, and what was known stays."""
        if self._server.key_file is None or (stamp := self._stamp()) == self._seen:
            return
        self._seen = stamp
        try:
            _log.info("the key file has changed: %d keys", self.reload())
        except InvalidDeployment as error:
            _log.error("the key file has changed and is not used: %s", error)

    def entitlement(self, tenant: str) -> Key:
        """What a tenant is entitled to; the defaults for one whose keys are gone."""
        return self._tenants.get(tenant, OPEN)

    def names(self) -> list[str]:
        """Of the keys that are known."""
        return sorted(key.name for key in self._keys.values())

    async def tenant(self, request: Request) -> str:
        """A dependency: the tenant of a request whose key may use the model. Raises Refusal 401, 403."""
        key = self._require(request, "inference")
        if key is OPEN:
            return ""
        if key.models is not None:
            request.scope[MODELS] = key.models
        if has_limits(key):
            request.scope["penstock.headers"] = partial(self.quota.headers, key.owner)
        return key.owner

    async def anyone(self, request: Request) -> None:
        """A dependency: any key will do. Raises Refusal 401."""
        self._known(request)

    def require(self, scope: Scope) -> Callable[[Request], Awaitable[None]]:
        """A dependency: the key must have this scope. It raises Refusal 401, 403."""

        async def check(request: Request) -> None:
            self._require(request, scope)

        return check

    def _require(self, request: Request, scope: Scope) -> Key:
        key = self._known(request)
        if scope not in key.scopes:
            raise Refusal(
                403, "insufficient_scope",
                f"the key {key.name!r} has the scopes {', '.join(key.scopes)}; this needs {scope}. Remedy: another key",
            )  # fmt: skip
        return key

    def _known(self, request: Request) -> Key:
        if not self.locked:
            return OPEN
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if not scheme and (other := request.headers.get("x-api-key")):
            scheme, given = "bearer", other  # where Anthropic's clients put it
        if scheme.lower() != "bearer" or not given.strip():
            raise Refusal(
                401, "invalid_api_key", "no API key was sent. Remedy: the header 'Authorization: Bearer <key>'"
            )
        digest = hashlib.sha256(given.strip().encode("latin-1")).digest()  # the bytes as they came
        # Every key is compared, so the time does not tell which one came close.
        found = [key for known, key in self._keys.items() if hmac.compare_digest(digest, known)]
        if not found:
            raise Refusal(401, "invalid_api_key", "the API key is not known here. Remedy: ask the operator for a key")
        return found[0]

    def _stamp(self) -> tuple[int, int, int] | None:
        if self._server.key_file is None:
            return None
        try:
            state = os.stat(self._server.key_file)
        except OSError:
            return (0, 0, 0)
        return (state.st_mtime_ns, state.st_size, state.st_ino)


def keys_of(deployment: Deployment) -> KeyRing:
    """The ring of a deployment. Raises InvalidDeployment."""
    return KeyRing(deployment.server, order=deployment.policy.order)

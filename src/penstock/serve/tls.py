"""The certificate of a listener: what is wrong with it is named, and nobody is asked for a password."""

from __future__ import annotations

import ssl
from typing import NoReturn

from penstock.errors import InvalidDeployment


def context_of(certificate: str, key: str | None) -> ssl.SSLContext:
    """What a listener needs.

    Raises InvalidDeployment: a file cannot be read, is not PEM, is encrypted, or the two do not belong together.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    _load(context, certificate, key)
    return context


def load(context: ssl.SSLContext, certificate: str, key: str | None) -> None:
    """Connections that come from now on get this certificate. Raises InvalidDeployment, as `context_of` does; then they
    get the old one."""
    context_of(certificate, key)  # first: half of a pair that does not fit takes the old pair out of its context
    _load(context, certificate, key)


def _load(context: ssl.SSLContext, certificate: str, key: str | None) -> None:
    for field, file in (("server.tls_certificate", certificate), ("server.tls_key", key)):
        try:
            if file is not None:
                open(file, "rb").close()
        except OSError as error:
            raise InvalidDeployment(
                field=field, value=file, why=f"it cannot be read: {error.strerror}", remedy="a readable PEM file"
            ) from None

    def nobody_is_asked() -> NoReturn:
        raise InvalidDeployment(
            field="server.tls_key", value=key, why="it is encrypted, and nobody is there to type its password",
            remedy="the key in the clear, readable by this server's user alone",
        )  # fmt: skip

    try:
        context.load_cert_chain(certificate, key, nobody_is_asked)
    except ssl.SSLError as error:
        raise InvalidDeployment(
            field="server.tls_certificate", value=certificate,
            why=f"with server.tls_key it makes no TLS: {(error.reason or 'not PEM').replace('_', ' ').lower()}",
            remedy="a certificate chain and the private key that belongs to it, both PEM",
        ) from None  # fmt: skip

"""What is wrong with a certificate, a key file or an address is named before a model has been loaded."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.deployment import Deployment
from penstock.errors import InvalidDeployment
from penstock.serve import tls
from penstock.serve.preflight import check
from penstock.serve.server import listen

from .test_upkeep import certificate

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")


def refused(cert: Path, key: Path) -> InvalidDeployment:
    with pytest.raises(InvalidDeployment) as caught:
        tls.context_of(str(cert), str(key))
    return caught.value


@needs_openssl
def test_each_way_in_which_a_certificate_is_wrong_names_the_file_and_the_remedy(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        certificate(folder, "localhost")
    cert, key = first / "cert.pem", first / "key.pem"
    assert isinstance(tls.context_of(str(cert), str(key)), ssl.SSLContext)
    none, text = tmp_path / "none.pem", tmp_path / "text.pem"
    text.write_text("hello\n")
    assert refused(none, key).field == "server.tls_certificate"
    missing = refused(cert, none)
    assert (missing.field, missing.value) == ("server.tls_key", str(none))
    assert "No such file" in missing.why
    assert "values mismatch" in refused(cert, second / "key.pem").why
    assert "pem" in refused(text, key).why.lower()
    assert "pem" in refused(cert, text).why.lower()
    assert refused(tmp_path, key).field == "server.tls_certificate"


@needs_openssl
def test_nobody_is_asked_for_the_password_of_a_key(tmp_path: Path) -> None:
    certificate(tmp_path, "localhost")
    locked = tmp_path / "locked.pem"
    subprocess.run(
        ["openssl", "pkcs8", "-topk8", "-in", str(tmp_path / "key.pem"), "-out", str(locked), "-passout", "pass:x"],
        check=True, capture_output=True,
    )  # fmt: skip
    error = refused(tmp_path / "cert.pem", locked)
    assert error.field == "server.tls_key"
    assert "encrypted" in error.why


@needs_openssl
def test_a_certificate_without_its_key_does_not_take_the_old_pair_away(tmp_path: Path) -> None:
    """As there is for a moment, where the two files are renewed one after the other."""

    def certificate_shown(context: ssl.SSLContext) -> bytes | None:
        client = ssl.create_default_context(cafile=str(old / "cert.pem"))
        to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
        ends = (
            client.wrap_bio(to_client, to_server, server_hostname="localhost"),
            context.wrap_bio(to_server, to_client, server_side=True),
        )
        for end in ends * 3:
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
        return ends[0].getpeercert(binary_form=True)

    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
        certificate(folder, "localhost")
    context = tls.context_of(str(old / "cert.pem"), str(old / "key.pem"))
    with pytest.raises(InvalidDeployment, match="values mismatch"):
        tls.load(context, str(new / "cert.pem"), str(old / "key.pem"))
    assert certificate_shown(context) == ssl.PEM_cert_to_DER_cert((old / "cert.pem").read_text())


def test_an_address_of_another_machine_and_no_address_at_all_are_the_hosts_fault() -> None:
    for host in ("192.0.2.1", "no.such.host.invalid", "." + "a" * 70, "::2"):
        with pytest.raises(InvalidDeployment) as caught:
            listen(host, 0)
        assert (caught.value.field, caught.value.value) == ("server.host", host)
        assert "0.0.0.0" in caught.value.remedy


def test_what_an_app_would_refuse_is_refused_without_one(tmp_path: Path) -> None:
    check(Deployment())
    with pytest.raises(InvalidDeployment) as caught:
        check(Deployment.parse({"server": {"key_file": str(tmp_path / "none.yaml")}}))
    assert caught.value.field == "server.key_file"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InvalidDeployment) as caught:
            check(Deployment.parse({"server": {"admin_port": port}}))
        assert (caught.value.field, caught.value.value) == ("server.admin_port", port)
    check(Deployment.parse({"server": {"admin_port": port}}))


def test_a_collector_without_its_packages_is_refused_without_an_app() -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from penstock.deployment import Deployment\n"
        "from penstock.errors import InvalidDeployment\n"
        "from penstock.serve.preflight import check\n"
        "try: check(Deployment.parse({'server': {'trace_endpoint': 'http://me:secret@127.0.0.1:4318'}}))\n"
        "except InvalidDeployment as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'penstock[otel]'" in done.stdout
    assert "127.0.0.1:4318" in done.stdout
    assert "secret" not in done.stdout

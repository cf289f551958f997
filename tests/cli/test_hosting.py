"""A server in a thread of its own: what keeps it from starting reaches the caller."""

from __future__ import annotations

from typing import NoReturn

import pytest

from penstock.cli.hosting import in_background
from penstock.deployment import Deployment
from penstock.runtime.service import Service


@pytest.mark.parametrize("kind", [RuntimeError, ImportError, SystemExit])
def test_whatever_keeps_the_server_from_starting_is_raised_where_its_url_is_awaited(
    kind: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> NoReturn:
        raise kind("no such luck")

    monkeypatch.setattr(Service, "start", fail)
    with (
        pytest.raises(kind, match="no such luck"),
        in_background(Deployment.parse({"server": {"port": 0}})),
    ):
        pytest.fail("it has not started")

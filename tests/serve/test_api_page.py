"""docs/api.md names every route, every field and every setting there is, and none that there is not."""

from __future__ import annotations

import re
from pathlib import Path

from penstock.deployment import Deployment, keys
from penstock.serve.reference import BODIES, MEANING

from .scripted import ScriptedService, scripted_app
from .test_lifecycle import api_routes

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text("utf-8")


def test_each_field_has_a_meaning_and_each_meaning_a_field() -> None:
    fields = {name for kind in BODIES.values() for name in kind.__struct_fields__}
    assert fields == set(MEANING)


def test_every_route_is_on_the_page() -> None:
    routes = api_routes(list(scripted_app(ScriptedService(Deployment())).routes))
    found = [(method, route.path) for route in routes for method in route.methods or ()]
    assert len(found) > 8
    for method, path in found:
        if path.startswith(("/v1/", "/tokenize", "/detokenize", "/version", "/health", "/ready", "/metrics")):
            shown = path.replace("{name:path}", "{id}")
            assert f"`{method} {shown}`" in PAGE, (method, path)


def test_settings_that_are_named_exist() -> None:
    known = set(keys())
    for name in re.findall(r"`((?:server|policy|memory|model)\.[a-z_.]+)`", PAGE):
        assert name in known or any(key.startswith(f"{name}.") for key in known), name

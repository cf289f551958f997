"""The page at `/` in a real browser: it chats, draws, asks for a key, and talks to its own origin alone."""

from __future__ import annotations

import re
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from penstock.control.request import Request
from penstock.deployment import Deployment
from penstock.runtime.facts import Output
from penstock.serve.dashboard.routes import PAGES

from .conftest import Loop, Scripted
from .scripted import ScriptedService, say, scripted_app

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
STATIC = Path(__file__).parents[2] / "src" / "penstock" / "serve" / "dashboard" / "static"


class Window:
    """A page, and everything it should not have done."""

    def __init__(self, page: Any, url: str) -> None:
        self.page, self.url = page, url
        self.foreign: list[str] = []
        self.errors: list[str] = []
        page.on("request", lambda one: None if one.url.startswith(url) else self.foreign.append(one.url))
        page.on("console", lambda one: self.errors.append(one.text) if one.type in ("error", "warning") else None)
        page.on("pageerror", lambda one: self.errors.append(str(one)))

    def until(self, expression: str) -> None:
        """Wait for JavaScript to be true. Playwright's own waiting evaluates strings in the page: forbidden there."""
        for _ in range(1200):
            if self.page.evaluate(expression):
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"never came true: {expression}")

    def ask(self, text: str) -> None:
        self.page.fill("#prompt", text)
        self.page.press("#prompt", "Enter")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine")
    with api.sync_playwright() as playwright:
        # Tests may run as root in a container, where Chromium's own sandbox cannot start.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def window(browser: Any, scripted: Scripted) -> Iterator[Window]:
    context = browser.new_context(viewport={"width": 1300, "height": 900})
    context.set_default_timeout(60_000)
    window = Window(context.new_page(), scripted.url)
    window.page.goto(scripted.url)
    yield window
    context.close()
    assert window.foreign == []


def test_chat_streams_and_shows_what_an_answer_cost(window: Window, scripted: Scripted) -> None:
    scripted.service.script = say("Water turns <b>the</b> wheel.\n```py\nprint(1)\n```")
    window.ask("What turns the wheel?")
    window.page.wait_for_selector(".turn.assistant .meta")
    answer = window.page.locator(".turn.assistant")
    assert "Water turns <b>the</b> wheel." in answer.locator(".text").inner_text()  # never markup
    assert answer.locator("pre").inner_text().strip() == "print(1)"
    assert answer.locator("b", has_text="the").count() == 0
    shown = answer.locator(".meta").inner_text()
    assert re.search(r"\d+\s*tokens\b", shown)
    assert "tokens/s" in shown
    assert "to first token" in shown
    assert re.search(r"3\s*of \d+ prompt tokens cached", shown)
    assert len(scripted.service.calls) == 1
    window.ask("And then?")
    window.until("document.querySelectorAll('.turn.assistant .meta').length === 2")
    assert len(scripted.service.calls[1].prompt) > len(scripted.service.calls[0].prompt)  # the history goes along
    assert window.errors == []


def test_stop_ends_the_answer_here_and_in_the_service(window: Window, scripted: Scripted) -> None:
    async def endless(request: Request) -> AsyncIterator[Output]:
        import asyncio

        while True:
            await asyncio.sleep(0.01)
            yield Output((97,))

    scripted.service.script = endless
    window.ask("go on")
    window.until("document.querySelector('.turn.assistant .text')?.textContent.length > 5")
    window.page.click("#stop")
    window.page.wait_for_selector(".turn.assistant .meta")
    assert scripted.service.someone_left.wait(30)
    assert "stopped" in window.page.locator(".turn.assistant .meta").inner_text()
    assert window.page.is_visible("#send")
    assert window.errors == []


def test_charts_fill_and_have_axes_with_units(window: Window, scripted: Scripted) -> None:
    assert window.page.locator(".chart").count() == 6
    empty = window.page.locator(".chart .waiting")
    window.page.wait_for_selector("#state[data-state=ready]")
    had = empty.count()
    assert had > 0  # a chart without data says so
    window.ask("hello")
    window.page.wait_for_selector(".turn.assistant .meta")
    for number in range(20):
        scripted.service.step(number, tokens=4)
    window.until(f"document.querySelectorAll('.chart .waiting').length < {had}")
    window.page.wait_for_selector(".chart .line")
    for title in ("Throughput", "Time to first token", "Gap between tokens", "Batch", "KV cache", "Step of the engine"):
        chart = window.page.locator(".chart", has=window.page.get_by_role("heading", name=title))
        assert chart.locator(".unit").inner_text()
        texts = chart.locator("svg text").all_text_contents()
        assert "now" in texts
        assert len([text for text in texts if re.match(r"[\d.]+", text)]) >= 2, texts
    assert "40 %" in window.page.locator("#tiles").inner_text()  # 4 of 10 blocks are held
    assert "anonymous" in window.page.locator("#tenants").inner_text()
    assert window.errors == []


def test_an_error_is_shown_in_words(window: Window, scripted: Scripted) -> None:
    window.page.click("summary")
    window.page.fill("#limit", "999999")
    window.ask("too long")
    window.page.wait_for_selector(".turn.assistant.failed")
    assert "exceed the context of 4096 tokens" in window.page.locator(".turn.failed .text").inner_text()


def test_a_narrow_dark_window_fits(browser: Any, scripted: Scripted) -> None:
    context = browser.new_context(viewport={"width": 380, "height": 700}, color_scheme="dark")
    page = context.new_page()
    page.goto(scripted.url)
    page.wait_for_selector("#state[data-state=ready]")
    assert page.evaluate("document.documentElement.scrollWidth") <= 380
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(14, 21, 20)"
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(244, 246, 246)"
    context.close()


def test_with_a_key_configured_the_page_asks_for_it_and_keeps_it_in_memory_only(browser: Any, loop: Loop) -> None:
    service = ScriptedService(Deployment.parse({"server": {"api_keys": ["open-sesame"]}}))
    for url in loop.serve(scripted_app(service)):
        context = browser.new_context()
        context.set_default_timeout(60_000)
        window = Window(context.new_page(), url)
        page = window.page
        page.goto(url)
        page.wait_for_selector("#key-dialog[open]")
        page.fill("#key", "wrong")
        page.press("#key", "Enter")
        window.until("document.getElementById('key-why').textContent.includes('does not know')")
        page.fill("#key", "open-sesame")
        page.press("#key", "Enter")
        page.wait_for_selector("#state[data-state=ready]")
        window.ask("hello")
        page.wait_for_selector(".turn.assistant .meta")
        assert page.locator(".turn.assistant .text").inner_text() == "hello"
        assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
        assert "open-sesame" not in page.content()
        page.reload()
        page.wait_for_selector("#key-dialog[open]")
        assert window.foreign == []
        context.close()


def test_the_page_is_the_same_on_every_server_and_its_numbers_need_a_key(loop: Loop, scripted: Scripted) -> None:
    service = ScriptedService(Deployment.parse({"server": {"api_keys": ["open-sesame"]}}))
    for url in loop.serve(scripted_app(service)):
        with httpx.Client(base_url=url, timeout=60) as http:
            for path in PAGES:
                answer = http.get(path)
                assert answer.status_code == 200
                assert answer.content == scripted.http.get(path).content == (STATIC / PAGES[path]).read_bytes()
                assert "default-src 'none'" in answer.headers["content-security-policy"]
                again = http.get(path, headers={"if-none-match": answer.headers["etag"]})
                assert (again.status_code, again.content) == (304, b"")
            assert http.get("/dashboard/live").status_code == 401
            assert http.get("/dashboard/live", headers={"authorization": "Bearer open-sesame"}).status_code == 200
            for path in ("/dashboard/", "/dashboard/../app.py", "/dashboard/%2e%2e/app.py", "/dashboard/routes.py"):
                assert http.get(path).status_code == 404


def test_the_page_can_be_left_out(loop: Loop) -> None:
    service = ScriptedService(Deployment.parse({"server": {"dashboard": False}}))
    for url in loop.serve(scripted_app(service)):
        for path in (*PAGES, "/dashboard/live"):
            assert httpx.get(url + path, timeout=60).status_code == 404


def test_every_file_is_served_and_none_names_another_host() -> None:
    assert {path.name for path in STATIC.iterdir()} == set(PAGES.values())
    for path in STATIC.iterdir():
        hosts = set(re.findall(r"(?:https?:)?//[\w.-]+", path.read_text(encoding="utf-8")))
        assert hosts <= {"http://www.w3.org"}, path.name  # the name space of SVG, which nobody fetches

"""The console in a real browser, in both themes, on servo-works: each page of it while it runs, and
those that show what is wrong while a service is broken; by forms, without scripts, over a restart.

With SCREENSHOTS=1 in the environment it writes the pictures of docs/console.md, too.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import ConsoleMessage, Page, expect, sync_playwright

from running_works import Works, synchromesh
from synchromesh.console.messages import render_message
from synchromesh.console.parts import PageQuery, frame
from synchromesh.console.site import PAGES

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
INSTALL = "apt-get update && apt-get install --yes chromium"
SLOW_MS = 60_000.0
expect.set_options(timeout=SLOW_MS)
THEMES = ("light", "dark")
MESSAGE = {
    "ref": "a:1", "event": "orders.placed", "position": 7, "source": "orders", "state": "parked",
    "subscriber": "production", "key": "o1", "message_id": "orders:7", "trace_id": "0" * 32,
    "attempts": 5, "first_at": "2026-01-01T00:00:00Z", "last_at": "2026-01-01T00:01:00Z",
    "error": "KeyError", "text": "'sku'", "payload": '{\n  "sku": "SX90"\n}',
}  # fmt: skip
# What axe cannot decide is looked at by people: the contrast of texts that stand on what is drawn.
UNDECIDED = {"color-contrast"}


@pytest.fixture(scope="module")
def works(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Works]:
    """servo-works as `new` writes it, run by `dev`, with some orders."""
    made = synchromesh(tmp_path_factory.mktemp("console"), "new", "works", "--example")
    works = Works(Path(made["folder"]))
    scopes = ("orders:write", "orders:read", "stock:read")
    words = [word for scope in scopes for word in ("--scope", scope)]
    works.key = synchromesh(works.folder, "gateway", "key", "add", "shop", *words)["key"]
    works.start()
    works.place("o1", "SX90")
    yield works
    works.leave()


@pytest.fixture(scope="module")
def page(works: Works) -> Iterator[Page]:
    """A browser that was let in; what it asks of others, and what goes wrong, fails the test."""
    chromium = shutil.which("chromium")
    assert chromium is not None, f"the console is tested in a browser; install it: {INSTALL}"
    entry = synchromesh(works.folder, "console")["url"]
    wrong: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": 1180, "height": 760})
        context.set_default_timeout(SLOW_MS)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if is_wrong(said) else None)
        page.on(
            "request",
            lambda sent: None if sent.url.startswith("http://127.0.0.1:")
            else wrong.append(sent.url),
        )  # fmt: skip
        page.goto(entry)
        yield page
        browser.close()
    assert wrong == []


def is_wrong(said: ConsoleMessage) -> bool:
    """Tell whether what a browser says is a mistake; that a system was killed is none."""
    return said.type == "error" and "net::ERR" not in said.text


def judge(page: Page) -> None:
    """Run axe: all rules in the first theme, those about colours in the others."""
    for theme in THEMES:
        page.emulate_media(color_scheme=theme, reduced_motion="reduce")  # type: ignore[arg-type]
        options: dict[str, Any] = {"rules": {"target-size": {"enabled": True}}}
        if theme != THEMES[0]:
            options = {"runOnly": {"type": "rule", "values": ["color-contrast"]}}
            found = page.evaluate("options => axe.run(options)", options)
        else:
            found = Axe().run(page, options=options).response
        where = f"{page.url} in {theme}"
        assert found["passes"], f"axe tested nothing of {where}"
        seen = [(v["id"], [n["html"] for n in v["nodes"]]) for v in found["violations"]]
        assert seen == [], where
        undecided = {
            (rule["id"], node["html"]) for rule in found["incomplete"] for node in rule["nodes"]
            if rule["id"] not in UNDECIDED or not node["html"].startswith("<text")
        }  # fmt: skip
        assert undecided == set(), where
        if theme == THEMES[0]:
            keep_picture(page)


def keep_picture(page: Page) -> None:
    """Write the pictures of the documentation, where that is wanted."""
    name = {"/": "now", "/map": "map"}.get(page.url.partition("127.0.0.1:")[2].lstrip("0123456789"))
    if os.environ.get("SCREENSHOTS") and name:
        page.screenshot(path=PICTURES / f"console-{name}.png")


def test_all_pages_are_without_violations_in_both_themes(page: Page, works: Works) -> None:
    """Each page, and one of each kind below, has no violation, and something to look at."""
    origin = page.url.rstrip("/")
    for path in PAGES:
        page.goto(f"{origin}/{'' if path == 'now' else path}")
        expect(page.locator("nav a[aria-current]")).to_have_count(1)
        judge(page)
    for path, row in (("services", "inventory"), ("traces", "POST /orders"), ("sagas", "place")):
        page.goto(f"{origin}/{path}")
        page.locator("tbody a", has_text=row).first.click()
        page.wait_for_url(f"{origin}/{path}/**")
        judge(page)
    page.goto(f"{origin}/databases/orders")
    expect(page.locator("tbody tr")).not_to_have_count(0)
    judge(page)
    # Nothing is set aside in a system that is well: the page of a message is one that is made up.
    made = frame("Message", "works", "/messages", render_message(MESSAGE, PageQuery("a:1")))
    page.route("**/messages/a:1", lambda route: route.fulfill(body=made, content_type="text/html"))
    page.goto(f"{origin}/messages/a:1")
    page.locator("summary").first.click()
    judge(page)


def test_what_breaks_and_heals_is_seen_without_a_reload(page: Page, works: Works) -> None:
    """Broken by a form that asks why; shown on an open page as it comes and goes; and recorded."""
    origin = page.url.partition("127.0.0.1:")[0] + page.url.partition("//")[2].partition("/")[0]
    page.goto(f"{origin}/")
    watching = page
    acting = page.context.new_page()
    acting.goto(f"{origin}/lab")
    acting.locator("summary").focus()
    acting.keyboard.press("Enter")
    acting.select_option("select[name=target]", "billing")
    acting.fill("input[name=for]", "1h")
    acting.fill("input[name=why]", "to see what degrades")
    acting.keyboard.press("Enter")
    expect(acting.locator("tbody")).to_contain_text("billing")
    expect(watching.locator("main")).to_contain_text("Broken on purpose")
    works.take("o2", "SX90")
    expect(watching.locator("tr", has_text="billing").first).not_to_contain_text("fails0")
    judge(watching)
    acting.goto(f"{origin}/map")
    expect(acting.locator("svg.map path.bad")).not_to_have_count(0)
    judge(acting)
    for path in ("edge", "services/billing", "services/orders"):
        acting.goto(f"{origin}/{path}")
        expect(acting.locator("h1")).not_to_have_text("That did not work")
        judge(acting)
    acting.goto(f"{origin}/lab")
    acting.locator("summary", has_text="Heal billing").click()
    acting.locator("details[open] input[name=why]").fill("seen")
    acting.locator("details[open] button").click()
    expect(watching.locator("main")).not_to_contain_text("Broken on purpose")
    assert '"to see what degrades"' in works.log()
    acting.close()


def test_pages_are_whole_without_scripts(page: Page) -> None:
    """A browser that runs no script shows the same page, and its forms are sent."""
    browser = page.context.browser
    assert browser is not None
    origin = "http://" + page.url.partition("//")[2].partition("/")[0]
    context = browser.new_context(java_script_enabled=False)
    context.add_cookies(page.context.cookies())  # type: ignore[arg-type]
    plain = context.new_page()
    plain.goto(f"{origin}/sagas")
    expect(plain.locator("tbody tr")).not_to_have_count(0)
    plain.select_option("select[name=status]", "stuck")
    plain.locator("button").click()
    expect(plain.locator("main")).to_contain_text("none")
    context.close()


def test_a_page_that_is_open_outlives_a_restart(page: Page, works: Works) -> None:
    """The system is killed and started again: the page goes on by itself, and shows the new one."""
    origin = "http://" + page.url.partition("//")[2].partition("/")[0]
    page.goto(f"{origin}/services/orders")
    before = page.locator("tbody td").nth(5).inner_text()
    works.kill()
    works.start()
    expect(page.locator("tbody td").nth(5)).not_to_have_text(before)
    expect(page.locator("h1")).to_have_text("orders")

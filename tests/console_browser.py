"""A browser without a screen: what it asks the console, and what it makes of an answer."""

from __future__ import annotations

import http.client
from collections.abc import Container, Mapping
from html.parser import HTMLParser
from urllib.parse import urlsplit


class Browser:
    """Asks the console as a browser does, field by field."""

    def __init__(self, entry: str) -> None:
        self.authority = urlsplit(entry).netloc
        self.origin = f"http://{self.authority}"
        self.cookie = ""

    def ask(
        self, method: str, path: str, body: str = "", **fields: str
    ) -> tuple[int, Mapping[str, str], str]:
        """Send a request; a field of "" is left out."""
        headers = {"Host": self.authority, "Cookie": self.cookie}
        if method == "POST":
            headers |= {"Origin": self.origin}
        headers |= {name.replace("_", "-"): value for name, value in fields.items()}
        connection = http.client.HTTPConnection(self.authority, timeout=30)
        sent = {name: value for name, value in headers.items() if value}
        connection.request(method, path, body.encode() or None, sent)
        answer = connection.getresponse()
        told = answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read().decode()
        connection.close()
        return told

    def enter(self, entry: str) -> int:
        """Follow the URL that was printed, and keep the cookie."""
        status, headers, _ = self.ask("GET", entry.removeprefix(self.origin))
        self.cookie = headers.get("set-cookie", "").partition(";")[0]
        return status

    def form_token(self, path: str) -> str:
        """Return the token of the forms of a page."""
        page = self.ask("GET", path)[2]
        return page.partition('name="form_token" value="')[2].partition('"')[0]


class Markup(HTMLParser):
    """Reads what a browser would make of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def links_of(page: str) -> set[str]:
    """Return where a page leads."""
    found = {fields.get("href") or "" for tag, fields in Markup(page).tags if tag == "a"}
    return {each for each in found if not each.startswith("#")}


def crawled(browser: Browser, but: Container[str] = ("/advice",)) -> dict[str, str]:
    """Follow each link from the first page on, and return all pages and their JSON, by path.

    The page of advice takes seconds, and is left out where that is not said otherwise.
    """
    found: dict[str, str] = {}
    left = ["/"]
    while left:
        path = left.pop()
        if path in found or path in but:
            continue
        bare, mark, query = path.partition("?")
        bare = "/now" if bare == "/" else bare
        for each in (path,) if bare.endswith(".json") else (path, f"{bare}.json{mark}{query}"):
            status, _, found[each] = browser.ask("GET", each)
            assert status == 200, (each, found[each])
        left += links_of(found[path])
    return found

"""What is wrong with a URL of somebody else's service, said without what nobody should read."""

from __future__ import annotations

import pytest

from synchromesh.system.config.urls import shown, url_fault


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1", "https://api.example", "https://api.example./v2/", "http://a_b:65535",
        "http://[::1]", "http://[::1]:8080/a%20b", "http://API.example:080/a;b=c", "http://b:",
    ],
)  # fmt: skip
def test_urls_that_can_be_called(url: str) -> None:
    """A host, maybe a port, maybe a prefix of the path."""
    assert url_fault(url) == ""


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "use http"),
        ("ftp://b", "use http"),
        ("http://", "the host is missing"),
        ("http:///a", "the host is missing"),
        ("http://:80", "the host is missing"),
        ("http://b:0", "the port is none"),
        ("http://b:65536", "the port is none"),
        ("http://b:99999", "the port is none"),
        ("http://b:-1", "the port is none"),
        ("http://b:abc", "the port is none"),
        ("http://b:80:80", "the port is none"),
        ("http://b:" + "9" * 5000, "the port is none"),
        ("http://[::1", "no address of IPv6"),
        ("http://::1]", "no address of IPv6"),
        ("http://[::1]x", "host is"),
        ("http://[b]", "no address of IPv6|the host is neither"),
        ("http://::1", "the port is none"),
        ("http://a b", "a blank"),
        ("http://b ", "a blank"),
        ("http://b/\n", "a blank"),
        ("http://b\t:80", "a blank"),
        ("http://bücher.example", "a character of no URL"),
        ("http://a..b", "the host is neither"),
        ("http://.b", "the host is neither"),
        ("http://-b", "the host is neither"),
        ("http://a,b", "the host is neither"),
        ("http://a%62", "the host is neither"),
        ("http://a\\b", "the host is neither"),
        ("http://" + "a" * 64, "the host is neither"),
        ("http://b?x=1", "a query or a fragment"),
        ("http://b/?", "a query or a fragment"),
        ("http://b/#x", "a query or a fragment"),
        ("http://me@b", "a user or a password"),
        ("http://me:hidden@b:80/a", "a user or a password"),
        ("http://:@b", "a user or a password"),
        ("http://b/a/../c", "a segment of dots"),
        ("http://b/%2e%2E/c", "a segment of dots"),
        ("http://b/%zz", "a character of no path"),
        ("http://b/<a>", "a character of no path"),
    ],
)  # fmt: skip
def test_urls_that_cannot_be_called(url: str, why: str) -> None:
    """Each says why."""
    assert any(each in url_fault(url) for each in why.split("|")), url_fault(url)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://u:hidden@b", "http://…@b"),
        ("http://u:hid/den@b", "http://…@b"),
        ("http://u:hid?den@b/a", "http://…@b/a"),
        ("http://u:hid@den@b", "http://…@b"),
        ("u:hidden@b", "…@b"),
        ("u:hid://den@b", "…@b"),
        ("http://b?key=hidden", "http://b?…"),
        ("http://b#hidden", "http://b#…"),
    ],
)
def test_no_message_shows_a_password(url: str, told: str) -> None:
    """Wherever it is, as such a URL may be wrong in more than one way."""
    assert shown(url) == told

"""URLs of somebody else's service, as a configuration gives them: what is wrong with one.

Whoever calls there takes a host, a port and a prefix of the path from it. Whatever else it has
would be dropped without a word, or fail with the first request; so it is refused before anything
listens.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address
from urllib.parse import urlsplit

from synchromesh.discovery.found import PORT_MAX, is_host_name

_SCHEMES = ("http://", "https://")
# RFC 3986, section 3.3.
_PATH = re.compile(r"(?:/(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})*)*")
_SHOWN_MAX = 80


def url_fault(url: str) -> str:
    """Return what is wrong with a URL, and what to do; "" for nothing.

    Example:
        >>> url_fault("https://api.example/v2"), url_fault("http://api.example:99999")
        ('', 'the port is none of 1 to 65535')
    """
    if not url.startswith(_SCHEMES):
        return "use http://... or https://..."
    if not url.isascii() or not url.isprintable() or " " in url:
        return "a blank, or a character of no URL, is in it; write it percent-encoded"
    _, _, rest = url.partition("://")
    authority, _, _ = rest.partition("/")
    if "@" in authority:
        return (
            "it has a user or a password, which would not be sent; leave them out, and see "
            "docs/external-apis.md for credentials"
        )
    if "?" in rest or "#" in rest:
        return "it has a query or a fragment, which would not be sent; leave it out"
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return "its host is no address of IPv6 in brackets"
    before, _, port = authority.rpartition("]")[2].partition(":")
    is_bracketed = authority.startswith("[")
    if port and not (port.isdigit() and 1 <= len(port) <= 5 and 1 <= int(port) <= PORT_MAX):
        return f"the port is none of 1 to {PORT_MAX}"
    if not host:
        return "the host is missing; write http://HOST:PORT"
    if (is_bracketed and before) or not _is_host(host, is_bracketed=is_bracketed):
        return "the host is neither a name nor an address; write http://HOST:PORT"
    fault = path_fault(parts.path)
    return fault and f"its path {fault}"


def path_fault(path: str) -> str:
    """Return what is wrong with a path, which may be empty; "" for nothing.

    Example:
        >>> path_fault("/a/b"), path_fault("/a/../b")
        ('', 'has a segment of dots, which leads elsewhere')
    """
    if not _PATH.fullmatch(path):
        return "has a character of no path; write it percent-encoded"
    if not {".", ".."}.isdisjoint(path.replace("%2e", ".").replace("%2E", ".").split("/")):
        return "has a segment of dots, which leads elsewhere"
    return ""


def shown(url: str) -> str:
    """Return a URL as a message shows it: without what may be a user, a password or a query.

    Example:
        >>> shown("http://me:secret@api.example/a?key=secret")
        'http://…@api.example/a?…'
    """
    scheme, mark, rest = url.partition("://")
    if not mark or not scheme.isalnum():
        scheme = mark = ""
        rest = url
    before, at, rest = rest.rpartition("@")
    text = f"{scheme}{mark}{'…@' if at else before}{rest}"
    cut = re.split(r"[?#]", text, maxsplit=1)
    if len(cut) > 1:
        text = f"{cut[0]}{text[len(cut[0])]}…"
    return text[:_SHOWN_MAX]


def _is_host(host: str, *, is_bracketed: bool) -> bool:
    if not is_bracketed:
        return is_host_name(host)
    try:
        IPv6Address(host)
    except ValueError:
        return False
    return True

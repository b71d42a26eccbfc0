"""Messages: what can be sent, and how it looks on the wire."""

from __future__ import annotations

from http import HTTPStatus

import msgspec
import pytest

from synchromesh.errors import Shed
from synchromesh.http import Headers, HttpRequest, HttpResponse, error_response, problem_response
from synchromesh.http.message import encode_request, encode_response


@pytest.mark.parametrize(
    "value", ["a\r\nset-cookie: b", "a\nb", "a\rb", "a\0b", "a\x7fb", "a\x01b", "\u20ac"]
)
def test_a_value_that_could_forge_a_line_is_refused_and_not_repeated(value: str) -> None:
    """Header injection ends where the header is made."""
    with pytest.raises(ValueError, match="'x-secret' has a value") as caught:
        Headers([("x-secret", value)])
    assert value not in str(caught.value)
    with pytest.raises(ValueError, match="x-secret"):
        HttpResponse(200, [("x-secret", value)])
    with pytest.raises(ValueError, match="x-secret"):
        encode_request("x", "GET", "/", [("x-secret", value)], b"")


@pytest.mark.parametrize("name", ["", "a b", "a:", "a\r\n", "\u00e4", "a\0"])
def test_a_name_that_is_no_token_is_refused(name: str) -> None:
    """Names are tokens of RFC 9110."""
    with pytest.raises(ValueError, match="no token"):
        Headers([(name, "1")])


def test_headers_keep_order_and_ignore_case() -> None:
    """Fields are found by lower-case name; repeated ones stay apart and in order."""
    headers = Headers([("B", "1"), ("a", "2"), ("b", "3")])
    assert list(headers) == [("b", "1"), ("a", "2"), ("b", "3")]
    assert headers.get("b") == "1"
    assert headers.get_all("b") == ("1", "3")
    assert headers.get("c", "none") == "none"
    assert "a" in headers
    assert "c" not in headers
    assert len(headers) == 3
    assert headers == Headers(headers)
    assert hash(headers) == hash(Headers(headers))
    assert headers != Headers()
    assert Headers.from_wire([(b"a", b"1")]) == Headers([("A", "1")])


def test_no_repr_shows_what_may_be_secret() -> None:
    """Header values, queries and bodies stay out of logs."""
    headers = Headers([("authorization", "s3cret")])
    request = HttpRequest("GET", "/a?key=s3cret", "/a", "key=s3cret", headers, b"s3cret")
    shown = repr(headers) + repr(request) + repr(HttpResponse(200, headers, b"s3cret"))
    assert "s3cret" not in shown
    assert repr(Headers()) == "<Headers empty>"


@pytest.mark.parametrize("status", [0, 99, 100, 101, 199, 600, 1000])
def test_a_status_that_is_no_final_answer_is_refused(status: int) -> None:
    """Interim answers are the server's own, and others have no meaning."""
    with pytest.raises(ValueError, match="200 to 599"):
        HttpResponse(status)


def test_framing_of_an_answer_is_the_servers_own() -> None:
    """What a handler says about framing is dropped, so that it cannot contradict the body."""
    response = HttpResponse(
        200,
        [
            ("Content-Length", "99"),
            ("Transfer-Encoding", "chunked"),
            ("Connection", "keep-alive"),
            ("X-A", "1"),
        ],
        b"abc",
    )
    wire = encode_response(response, is_head=False, is_last=False)
    assert wire == b"HTTP/1.1 200 OK\r\nx-a: 1\r\ncontent-length: 3\r\n\r\nabc"


@pytest.mark.parametrize(
    ("status", "is_head", "is_last", "wire"),
    [
        (200, True, False, b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n"),
        (204, False, False, b"HTTP/1.1 204 No Content\r\n\r\n"),
        (304, False, True, b"HTTP/1.1 304 Not Modified\r\nconnection: close\r\n\r\n"),
        (299, False, False, b"HTTP/1.1 299 \r\ncontent-length: 3\r\n\r\nabc"),
    ],
)
def test_answers_without_a_body_have_none(
    status: int, is_head: bool, is_last: bool, wire: bytes
) -> None:
    """HEAD, 204 and 304 never carry a body, whatever the handler gave."""
    assert (
        encode_response(HttpResponse(status, (), b"abc"), is_head=is_head, is_last=is_last) == wire
    )


def test_a_handler_of_head_may_name_the_length() -> None:
    """The answer to HEAD states the length that GET would have."""
    response = HttpResponse(200, [("content-length", "1234")])
    assert b"content-length: 1234\r\n" in encode_response(response, is_head=True, is_last=False)
    odd = HttpResponse(200, [("content-length", "12, 34")])
    assert b"content-length: 0\r\n" in encode_response(odd, is_head=True, is_last=False)


def test_a_request_is_framed_by_its_length_and_names_its_host() -> None:
    """Methods that carry bodies always state a length; a given Host replaces the authority."""
    assert (
        encode_request("h:1", "GET", "/a?b", (), b"") == b"GET /a?b HTTP/1.1\r\nhost: h:1\r\n\r\n"
    )
    wire = encode_request("h:1", "POST", "/", [("Host", "other"), ("X-A", "\xe4")], b"")
    assert wire == b"POST / HTTP/1.1\r\nhost: other\r\nx-a: \xe4\r\ncontent-length: 0\r\n\r\n"
    assert encode_request("h", "DELETE", "/", (), b"ab").endswith(b"content-length: 2\r\n\r\nab")


@pytest.mark.parametrize("method", ["", "get", "GE T", "GET\r\n", "CONNECT"])
def test_a_method_that_cannot_be_sent_is_refused(method: str) -> None:
    """A method is a token in upper case, and no tunnel."""
    with pytest.raises(ValueError, match="method"):
        encode_request("h", method, "/", (), b"")


@pytest.mark.parametrize("target", ["", "a", "/a b", "/a\r\nx", "/a#f", "/\xe4", "http://x/"])
def test_a_target_that_cannot_be_sent_is_refused(target: str) -> None:
    """A target is a percent-encoded path: request splitting ends here."""
    with pytest.raises(ValueError, match="target"):
        encode_request("h", "GET", target, (), b"")


@pytest.mark.parametrize(
    "name", ["Connection", "Content-Length", "Transfer-Encoding", "TE", "Upgrade", "Expect"]
)
def test_a_caller_cannot_frame_a_request(name: str) -> None:
    """Framing fields are the pool's own."""
    with pytest.raises(ValueError, match="frames the message"):
        encode_request("h", "GET", "/", [(name, "x")], b"")


def test_two_hosts_cannot_be_sent() -> None:
    """The callee could read either."""
    with pytest.raises(ValueError, match="two Host"):
        encode_request("h", "GET", "/", [("host", "a"), ("Host", "b")], b"")


def test_errors_are_problem_details() -> None:
    """An error keeps its code and status; a bare status gets a body of the same shape."""
    shed = error_response(Shed("the service drains"), [("retry-after", "1")])
    assert shed.status == 503
    assert shed.headers.get("retry-after") == "1"
    assert msgspec.json.decode(shed.body)["code"] == "shed"
    large = problem_response(413, "too long")
    assert msgspec.json.decode(large.body) == {
        "type": "urn:synchromesh:error:bad_request",
        "title": HTTPStatus(413).phrase,
        "status": 413,
        "detail": "too long",
        "code": "bad_request",
    }

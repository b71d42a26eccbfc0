"""Tokens at a gateway that serves: over real sockets, with keys from a file and by TLS."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import json
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from joserfc import jwt
from joserfc.jwk import ECKey

from notes_app import TESTS, TOML
from split_world import ControlSocket, port_of, running
from synchromesh.errors import ConfigError, ConnectFailed
from synchromesh.gateway.jwks import Fetcher
from synchromesh.http import HttpPool
from synchromesh.runtime import RealRuntime
from synchromesh.system import System

pytestmark = pytest.mark.anyio

WITHIN_S = 30.0
ISSUER = "https://id.servo.works"
APP = """
from notes_app import Notes
from synchromesh import JWT, ApiKeys, Gateway, Route

way_in = Gateway(
    auth=[ApiKeys(), JWT(issuer="https://id.servo.works", audience="api", jwks="keys.json")],
    routes=[Route("GET /count", Notes.count, scopes={"notes:read"})],
)
"""


def key_of(name: str) -> ECKey:
    return ECKey.generate_key("P-256", {"kid": name})


def publish(folder: Path, *keys: ECKey) -> None:
    made = folder / "keys.new"
    made.write_text(json.dumps({"keys": [key.as_dict(private=False) for key in keys]}))
    made.replace(folder / "keys.json")


def token(key: ECKey, scope: str = "notes:read") -> str:
    said = {"iss": ISSUER, "aud": "api", "sub": "ada", "exp": time.time() + 600, "scope": scope}
    return jwt.encode({"alg": "ES256", "kid": key.kid}, said, key, algorithms=["ES256"])


@pytest.mark.parametrize("is_split", [False, True], ids=["one process", "split"])
async def test_a_token_opens_what_its_scopes_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: HttpPool, is_split: bool
) -> None:
    """From the folder's file of keys, on the fast way too, and not a second after its key went."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    (tmp_path / "token_doors.py").write_text(APP)
    monkeypatch.syspath_prepend(tmp_path)
    one, other = key_of("one"), key_of("other")
    publish(tmp_path, one)
    text = TOML + '\n[gateway]\napp = "token_doors:way_in"\n'
    async with running(tmp_path, text, is_split=is_split) as system:

        async def asked(credential: str | None) -> int:
            headers = [] if credential is None else [("authorization", f"Bearer {credential}")]
            answer = await pool.request(
                "127.0.0.1", port_of(system.info.gateway), "GET", "/count", headers,
                timeout_s=WITHIN_S, is_idempotent=True,
            )  # fmt: skip
            assert credential is None or credential.encode() not in answer.body
            return answer.status

        good = token(one)
        assert [await asked(each) for each in (None, "a.b.c", token(other))] == [401] * 3
        assert await asked(token(one, "notes:write")) == 403
        assert [await asked(good) for _ in range(3)] == [200] * 3
        assert (await ControlSocket(system, pool).ask("GET", "/status"))["findings"] == []
        publish(tmp_path, other)
        async with asyncio.timeout(WITHIN_S):
            while await asked(good) != 401:
                await asyncio.sleep(0.05)
        assert await asked(token(other)) == 200
    await nothing_holds(tmp_path, system, good)


async def nothing_holds(folder: Path, system: System, credential: str) -> None:
    """No file of the run has a token in it, nor a part of one."""
    signature = credential.rpartition(".")[2].encode()
    files = [path for path in (folder / ".synchromesh").rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if signature in path.read_bytes()]


# -- by TLS ----------------------------------------------------------------------------------------


def certify(folder: Path, *, days: int = 1) -> tuple[Path, Path]:
    """Make a key and a certificate of its own for 127.0.0.1; return both files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "id.servo.works")])
    now = dt.datetime.now(dt.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=30))
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    key_file, certificate = folder / "id.key", folder / "id.pem"
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return key_file, certificate


@asynccontextmanager
async def served(folder: Path, answer: bytes, *, days: int = 1) -> AsyncIterator[str]:
    """Serve one answer by TLS; yield the URL."""
    key, certificate = certify(folder, days=days)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(one, "127.0.0.1", 0, ssl=context)
    async with server:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/keys"


def answer(status: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    return head.encode() + body


async def test_keys_come_by_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From whoever the system's roots vouch for; what is not 200 is no set of keys."""
    async with served(tmp_path, answer("200 OK", b"{}")) as url:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "id.pem"))
        assert await Fetcher(RealRuntime().network)(url) == b"{}"
    async with served(tmp_path, answer("404 Not Found", b"{}")) as url:
        with pytest.raises(ConfigError, match="answered 404, and 200 is expected"):
            await Fetcher(RealRuntime().network)(url)


async def test_nobody_can_pretend_to_be_the_issuer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A certificate that nobody vouches for, of another name, or expired ends the fetch."""
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    async with served(tmp_path, answer("200 OK", b"{}")) as url:
        with pytest.raises(ConnectFailed, match="certificate"):
            await Fetcher(RealRuntime().network)(url)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "id.pem"))
        with pytest.raises(ConnectFailed, match="certificate"):
            await Fetcher(RealRuntime().network)(url.replace("127.0.0.1", "localhost"))
    async with served(tmp_path, answer("200 OK", b"{}"), days=-1) as url:
        with pytest.raises(ConnectFailed, match="certificate"):
            await Fetcher(RealRuntime().network)(url)

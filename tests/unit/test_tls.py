"""Certificates: what is wrong with them, and files that change."""

from __future__ import annotations

import contextlib
import logging
import shutil
import ssl
import subprocess
import time
from pathlib import Path

import pytest

from certificates import issue
from pages import ROOT, blocks_of
from synchromesh.certificate import certificate_of
from synchromesh.errors import ConfigError
from synchromesh.tls import DAY_S, ClientContexts, ClientFiles, ServerFiles, ServerTls

NOW_S = time.time()


def serial_of(tls: ServerTls) -> str:
    """Shake hands as a client does, and return the number of the certificate that is shown."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    theirs = client.wrap_bio(to_client, to_server)
    ours = tls.context().wrap_bio(to_server, to_client, server_side=True)
    for end in (theirs, ours, theirs, ours):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    der = theirs.getpeercert(binary_form=True)
    assert der is not None
    return der.hex()


def test_the_certificate_of_the_page_is_for_this_machine(tmp_path: Path) -> None:
    """Its lines make an authority and a certificate that a strict client believes, by its names."""
    page = (ROOT / "docs/tls.md").read_text()
    bash = [each.body for each in blocks_of(page) if each.language == "bash"]
    lines = "".join(each for each in bash if "curl" not in each)
    programs = {line.split()[0] for line in lines.replace("\\\n", "").splitlines()}
    assert programs == {"mkdir", "openssl", "printf"}
    if shutil.which("openssl") is None:
        return  # what makes certificates is not here
    subprocess.run(
        ["bash", "-ec", lines], cwd=tmp_path, check=True, capture_output=True, timeout=60
    )
    folder = tmp_path / "tls"
    tls = ServerTls(ServerFiles(folder / "fullchain.pem", folder / "privkey.pem"), now_s=NOW_S)
    assert tls.certificate.names == ("localhost", "127.0.0.1")
    client = ClientContexts({("localhost", 1): ClientFiles(ca=folder / "own-ca.pem")})
    context = client("localhost", 1)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    for name in tls.certificate.names:
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        theirs = context.wrap_bio(to_client, to_server, server_hostname=name)
        ours = tls.context().wrap_bio(to_server, to_client, server_side=True)
        for end in (theirs, ours, theirs, ours):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
        assert theirs.version() == "TLSv1.3"
        assert theirs.getpeercert()
    # The partner's is taken by who asks for one, and is what the page says.
    files = ServerFiles(folder / "fullchain.pem", folder / "privkey.pem", folder / "partners.pem")
    partner = ClientFiles(folder / "own-ca.pem", folder / "acme.pem", folder / "acme.key")
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ClientContexts({("localhost", 1): partner})("localhost", 1)
    theirs = context.wrap_bio(to_client, to_server, server_hostname="localhost")
    asking = ServerTls(files, now_s=NOW_S).context()
    asking.verify_flags |= ssl.VERIFY_X509_STRICT
    ours = asking.wrap_bio(to_server, to_client, server_side=True)
    for end in (theirs, ours, theirs, ours):
        with contextlib.suppress(ssl.SSLWantReadError):
            end.do_handshake()
    shown = certificate_of(ours)
    assert shown is not None
    assert shown.named("uri") == ("spiffe://partners/acme",)
    assert shown.named("cn") == ("acme",)
    assert shown.expires_s > NOW_S


def test_files_that_change_serve_the_next_handshake(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is wrong, half there or expired changes nothing, and is said once."""
    ca = issue(tmp_path, "ca")
    one = issue(tmp_path, "gate", by=ca)
    tls = ServerTls(ServerFiles(one.pem, one.key), now_s=NOW_S)
    first = serial_of(tls)
    assert not tls.refresh(now_s=NOW_S)
    issue(tmp_path, "gate", by=ca)
    assert serial_of(tls) == first
    assert tls.refresh(now_s=NOW_S)
    second = serial_of(tls)
    assert second != first
    with caplog.at_level(logging.ERROR):
        for damage in (b"", b"-----BEGIN CERTIFICATE-----\nnone\n", one.key.read_bytes()):
            one.pem.write_bytes(damage)
            assert not tls.refresh(now_s=NOW_S)
            assert not tls.refresh(now_s=NOW_S)
        one.pem.unlink()
        assert not tls.refresh(now_s=NOW_S)
        issue(tmp_path, "gate", by=ca, days=-1)
        assert not tls.refresh(now_s=NOW_S)
    assert serial_of(tls) == second
    assert len(caplog.records) == 5
    assert all("stays as it was" in record.message for record in caplog.records)


def test_a_key_that_came_later_than_its_certificate_is_waited_for(tmp_path: Path) -> None:
    """Tools that renew replace one file after the other: between them nothing changes."""
    one = issue(tmp_path, "gate")
    tls = ServerTls(ServerFiles(one.pem, one.key), now_s=NOW_S)
    before, old_key = serial_of(tls), one.key.read_bytes()
    two = issue(tmp_path, "gate")
    new_key = two.key.read_bytes()
    two.key.write_bytes(old_key)
    assert not tls.refresh(now_s=NOW_S)
    assert serial_of(tls) == before
    two.key.write_bytes(new_key)
    assert tls.refresh(now_s=NOW_S)
    assert serial_of(tls) != before


@pytest.mark.parametrize(
    ("days", "told"), [(30.0, ""), (3.0, "ends in 3.0 days"), (13.9, "ends in 13.9 days")]
)
def test_a_certificate_that_ends_soon_is_told(tmp_path: Path, days: float, told: str) -> None:
    """Two weeks before, and once it has."""
    one = issue(tmp_path, "gate", days=days)
    tls = ServerTls(ServerFiles(one.pem, one.key), now_s=NOW_S)
    assert tls.certificate.names == ("127.0.0.1",)
    assert told in tls.warning(now_s=NOW_S)
    assert bool(tls.warning(now_s=NOW_S)) == bool(told)
    assert "has expired" in tls.warning(now_s=NOW_S + 31 * DAY_S)


def test_what_cannot_serve_is_told_by_its_place(tmp_path: Path) -> None:
    """Before anything listens, and without the key."""
    ca = issue(tmp_path, "ca")
    good, other = issue(tmp_path, "gate", by=ca), issue(tmp_path, "other", by=ca)
    old = issue(tmp_path, "old", by=ca, days=-1)
    locked = issue(tmp_path, "locked", by=ca, password=b"secret")
    text = tmp_path / "text.pem"
    text.write_text("no certificate")
    for files, why in (
        (ServerFiles(tmp_path / "none.pem", good.key), "none.pem cannot be read: No such file"),
        (ServerFiles(good.pem, tmp_path), "cannot be read: Is a directory"),
        (ServerFiles(good.pem, other.key), "is not the key of"),
        (ServerFiles(good.key, good.key), "cannot be read .*in PEM, without a password"),
        (ServerFiles(text, good.key), "cannot be read .*in PEM, without a password"),
        (ServerFiles(locked.pem, locked.key), "without a password"),
        (ServerFiles(old.pem, old.key), "certificate has expired"),
        (ServerFiles(good.pem, good.key, text), "holds no certificates of authorities"),
        (ServerFiles(good.pem, good.key, tmp_path / "ca2.pem"), "ca2.pem cannot be read"),
    ):
        with pytest.raises(ConfigError, match=why) as told:
            ServerTls(files, now_s=NOW_S)
        assert "PRIVATE" not in told.value.message


def test_a_clock_that_is_ahead_sees_it_expired(tmp_path: Path) -> None:
    """By the clock that is handed in, as all else."""
    one = issue(tmp_path, "gate", days=1)
    with pytest.raises(ConfigError, match="has expired"):
        ServerTls(ServerFiles(one.pem, one.key), now_s=NOW_S + 2 * DAY_S)


def test_what_a_client_cannot_use_is_told(tmp_path: Path) -> None:
    """A certificate without its key, and authorities that are none."""
    good = issue(tmp_path, "shop")
    text = tmp_path / "text.pem"
    text.write_text("no certificate")
    for files, why in (
        (ClientFiles(ca=text), "holds no certificates of authorities"),
        (ClientFiles(certificate=good.pem), "go together"),
        (ClientFiles(key=good.key), "go together"),
        (ClientFiles(certificate=good.pem, key=text), "cannot be read"),
    ):
        with pytest.raises(ConfigError, match=why):
            ClientContexts({("127.0.0.1", 443): files})
    contexts = ClientContexts({("127.0.0.1", 443): ClientFiles(ca=good.pem)})
    assert contexts("127.0.0.1", 443) is not contexts("127.0.0.1", 444)
    assert contexts("127.0.0.1", 444).verify_mode is ssl.CERT_REQUIRED
    assert contexts("127.0.0.1", 443).check_hostname

"""The soak test's own parts: two releases of servo-works, and a disk that fails by the system."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from demo.running import copy_shipped
from scripts.soak import Disk, Releases, stock_up

WRITE = """
import os, sys
for name in ("orders.db", "billing.db"):
    for what in ("write", "sync"):
        file = os.open(name, os.O_CREAT | os.O_RDWR)
        try:
            os.pwrite(file, b"x", 0) if what == "write" else os.fsync(file)
        except OSError as error:
            print(name, what, error.strerror)
        os.close(file)
"""


def test_both_releases_of_what_is_shipped_can_be_loaded(tmp_path: Path) -> None:
    """Both are Python, both differ, and the newer has the older saga beside its own."""
    copy_shipped(tmp_path)
    assert stock_up(tmp_path)
    releases, texts = Releases(tmp_path), {}
    for release in ("old", "new"):
        for service in releases.at:
            releases.write(service, release)
        load = "from services.orders import orders; from services.inventory import inventory; "
        tell = "print([s.version for s in orders.sagas], len(inventory.subscriptions))"
        told = subprocess.run(
            [sys.executable, "-c", load + tell], cwd=tmp_path, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        texts[release] = told.stdout or told.stderr
    assert texts == {"old": "[1] 0\n", "new": "[1, 2] 1\n"}


def test_a_disk_fails_where_it_is_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one database, and by what is asked for: that it is full, or that nothing is synced."""
    monkeypatch.setenv("LD_PRELOAD", "")
    disk = Disk(tmp_path)
    if not disk.is_there:
        assert os.environ["LD_PRELOAD"] == ""
        return

    def tell() -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", WRITE], cwd=tmp_path, env={**os.environ, **disk.environment},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout.splitlines()

    assert tell() == []
    disk.fail("w", "orders")
    assert tell() == ["orders.db write No space left on device"]
    disk.fail("s", "billing")
    assert tell() == ["billing.db sync Input/output error"]
    disk.mend()
    assert tell() == []

"""What every test shares."""

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """Async tests that need real sockets or threads run on asyncio."""
    return "asyncio"

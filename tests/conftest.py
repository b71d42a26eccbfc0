"""What every test shares."""

import pytest
from hypothesis import settings

# A busy machine is no failure, and a failure is the same one each time.
settings.register_profile("house", deadline=None, derandomize=True)
settings.load_profile("house")


@pytest.fixture
def anyio_backend() -> str:
    """Async tests that need real sockets or threads run on asyncio."""
    return "asyncio"

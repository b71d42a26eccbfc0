"""How a contract, an event or a state declares personal data. It needs the extra `personal`.

    class Registered(msgspec.Struct, frozen=True):
        customer_id: Subject
        email: Personal[str]

A `Subject` is a text that names whose data it is; each `Personal` field beside it, or in what is
beside it, is that subject's. Both are annotations only: to a type checker `Subject` is `str`, and
`Personal[str]` is `str | Erased`.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated, TypeAlias, TypeVar

import msgspec

from synchromesh.errors import MissingExtra
from synchromesh.personal_types import PERSONAL, SUBJECT
from synchromesh.sealing import Erased

T = TypeVar("T")

__all__ = ["Erased", "Personal", "Subject"]

# Here, where types are declared: a service that could not store their values must not start.
if find_spec("cryptography") is None:
    raise MissingExtra("personal", needed_for="a Personal field")

Personal: TypeAlias = Annotated[T | Erased, msgspec.Meta(description=PERSONAL)]
"""A personal value: encrypted wherever it is stored, and `Erased` once its subject is erased."""

Subject: TypeAlias = Annotated[str, msgspec.Meta(description=SUBJECT)]
"""Names the subject of the personal fields beside it: an id that names nobody by itself."""

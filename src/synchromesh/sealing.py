"""Personal values in JSON as it is stored: sealed with the keys of those to whom they belong.

In memory and between services a personal field is its plain value. Where JSON is stored each one is
*sealed*: in its place stands an object that names the subject and holds the value encrypted under
the subject's key. Once that key is gone the value is `Erased`, wherever a copy of it is.

    {"customer_id": "c-17", "email": {"$personal": "c-17", "sealed": "AbCd..."}}

A machine: a `Vault`, which is handed in, has the keys. `personal_types` tells which fields are
personal.

Source: Verraes, "Eventsourcing Patterns: Crypto-Shredding", 2019.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import msgspec

from synchromesh.codec import to_json
from synchromesh.errors import BadRequest, PersonalUnreadable

MARK = "$personal"
"""The key that tells a sealed value."""

MARKED = b'"$personal"'
"""What a document has in it that holds a sealed value."""
_SEALED = "sealed"
_SUBJECT_CHARS_MAX = 200
ERASED = ["erased"]
"""The JSON of `Erased`."""

Path: TypeAlias = tuple[str | int, ...]


class Erased(NamedTuple):
    """What stands in the place of a personal value whose subject was erased.

    Example:
        >>> f"Dear {Erased()}"
        'Dear (erased)'
    """

    why: Literal["erased"] = "erased"

    def __str__(self) -> str:
        return "(erased)"

    # A NamedTuple formats as the tuple that it is, else.
    def __format__(self, spec: str) -> str:
        return format(str(self), spec)


class Vault(Protocol):
    """The keys of a service's subjects."""

    def seal(self, subject: str, place: str, data: bytes) -> str | None:
        """Encrypt what belongs to a place under the subject's key; None for one who is erased."""
        ...

    def open(self, subject: str, place: str, sealed: str) -> bytes | None:
        """Decrypt what was sealed for this place; None for a subject who is erased.

        Raises:
            PersonalUnreadable: the key is not there, or it was sealed for another place.
        """
        ...

    def is_erased(self, subject: str) -> bool:
        """Return whether a subject was erased."""
        ...


class NoKeys:
    """The vault of whoever has no keys: all that is sealed is erased, and so is what is stored.

    Example:
        >>> NO_KEYS.is_erased("c-17")
        True
    """

    def seal(self, subject: str, place: str, data: bytes) -> str | None:  # noqa: ARG002
        """Return None."""
        return None

    def open(self, subject: str, place: str, sealed: str) -> bytes | None:  # noqa: ARG002
        """Return None."""
        return None

    def is_erased(self, subject: str) -> bool:  # noqa: ARG002
        """Return True."""
        return True


NO_KEYS: Vault = NoKeys()


class SubjectRecord(msgspec.Struct, frozen=True):
    """What is known of a subject: since when it has a key, or when, by whom and why it was erased.

    Attributes:
        name: "" once it is erased.
    """

    name: str
    made_us: int
    erased_us: int | None = None
    who: str = ""
    why: str = ""


class SubjectKeys(Vault, Protocol):
    """A vault as whoever owns the database sees it.

    Attributes:
        expected: the id of the keys that the database was used with; "" where there were none yet.
        left_over: why keys that were erased are still in bytes of the file; "" where none are.
        on_left_over: called when that begins.
    """

    expected: str
    left_over: str
    on_left_over: Callable[[], None]

    @property
    def is_there(self) -> bool:
        """Whether there are any keys."""
        ...

    @property
    def lost(self) -> str:
        """The id of the keys that are lost; "" where none are."""
        ...

    def prepare(self) -> str:
        """Open the keys, or begin them where there never were any, and return their id.

        Raises:
            PersonalUnreadable: they are lost.
            StoreError: they cannot be used.
        """
        ...

    def erase(self, subject: str, *, now_us: int, who: str, why: str) -> SubjectRecord | None:
        """Delete the key of a subject for good; return what was known of it, None for nothing.

        One who was erased before keeps the first record. No waiting for whoever reads the file: the
        bytes of the key are left over until then.

        Raises:
            PersonalUnreadable: the keys are lost.
            StoreError: it cannot be written; the key is still there.
        """
        ...

    def overwrite(self) -> bool:
        """Try once to overwrite what is left over of erased keys; return whether nothing is."""
        ...

    def find(self, subject: str) -> SubjectRecord | None:
        """Return what is known of a subject; None for nothing."""
        ...

    def note_access(self, subject: str, *, now_us: int, who: str, why: str) -> None:
        """Record that a subject's values were shown to somebody.

        Raises:
            PersonalUnreadable, StoreError: the keys are lost, or cannot be written.
        """
        ...

    def give_up(self, *, now_us: int, who: str, why: str) -> str:
        """Take all that was sealed with lost keys as erased, begin others, and return their id."""
        ...


class PersonalPlace(msgspec.Struct, frozen=True, array_like=True):
    """Where a personal value is in a JSON document, and whose it is."""

    path: Path
    subject: str


NO_PLACES: tuple[PersonalPlace, ...] = ()


def seal_at(data: bytes, places: tuple[PersonalPlace, ...], where: str, vault: Vault) -> bytes:
    """Seal a document of a type that is not known here, at the places that came with it.

    Raises:
        BadRequest: there is nothing at one of them, or a subject is empty or too long.
    """

    def act(value: Any, place: PersonalPlace) -> Any:
        return sealed_value(value, place.path, place.subject, where, vault)

    return _changed_at(data, places, act)


def mask_at(data: bytes, places: tuple[PersonalPlace, ...]) -> bytes:
    """Return a document as if the subjects of these places were erased."""
    return _changed_at(data, places, lambda *_: ERASED)


def erase_at(data: bytes, places: tuple[PersonalPlace, ...], vault: Vault) -> bytes:
    """Return a document without the values of those whom a vault knows to be erased."""

    def act(value: Any, place: PersonalPlace) -> Any:
        return ERASED if vault.is_erased(place.subject) else value

    return _changed_at(data, places, act)


def open_sealed(data: bytes, where: str, vault: Vault) -> bytes:
    """Return a document with its sealed values opened, of whatever release it is.

    Raises:
        PersonalUnreadable: a key is not there, or a value was sealed for another place.
    """
    return open_at(data, where, vault)[0]


def open_at(data: bytes, where: str, vault: Vault) -> tuple[bytes, tuple[PersonalPlace, ...]]:
    """Return a document with its sealed values opened, and where they were."""
    if MARKED not in data:
        return data, ()
    places: list[PersonalPlace] = []

    def opened(value: Any, path: Path) -> Any:
        if isinstance(value, list):
            return [opened(each, (*path, n)) for n, each in enumerate(value)]
        if not isinstance(value, dict):
            return value
        if value.keys() != {MARK, _SEALED}:
            return {name: opened(each, (*path, name)) for name, each in value.items()}
        subject, sealed = str(value[MARK]), str(value[_SEALED])
        plain = vault.open(subject, _place(where, path), sealed)
        if plain is None:
            return ERASED
        places.append(PersonalPlace(path, subject))
        return msgspec.json.decode(plain)

    plain = opened(msgspec.json.decode(data), ())
    return to_json(plain), tuple(places)


def open_if_ours(data: bytes, where: str, vault: Vault) -> bytes:
    """Open a document of which it is not known whether anything in it is sealed.

    What was not sealed with the keys that are there is left as it is: it may be a user's own.

    Raises:
        PersonalUnreadable: the keys are lost, or that of a subject is: nobody can tell.
    """
    try:
        return open_sealed(data, where, vault)
    except msgspec.DecodeError:
        return data
    except PersonalUnreadable as error:
        if not error.is_foreign:
            raise
        return data


def sealed_value(value: Any, path: Path, subject: str, where: str, vault: Vault) -> Any:
    """Return what is stored of a personal value that is at a path of a document.

    Raises:
        BadRequest: the subject is empty or too long.
    """
    if value is None or value == ERASED:
        return value
    if not 1 <= len(subject) <= _SUBJECT_CHARS_MAX or not subject.isprintable():
        raise BadRequest(
            f"{where} has a personal {_shown(path)} of a subject of {len(subject)} characters; a "
            f"subject is named by 1 to {_SUBJECT_CHARS_MAX} printable ones"
        )
    sealed = vault.seal(subject, _place(where, path), to_json(value))
    return ERASED if sealed is None else {MARK: subject, _SEALED: sealed}


def _place(where: str, path: Path) -> str:
    return f"{where}\0{_shown(path)}"


def _shown(path: Path) -> str:
    return "/".join(str(each).replace("~", "~0").replace("/", "~1") for each in path)


def _changed_at(
    data: bytes, places: tuple[PersonalPlace, ...], act: Callable[[Any, PersonalPlace], Any]
) -> bytes:
    whole = {"": msgspec.json.decode(data)}
    for place in places:
        at: Any = whole
        key: str | int = ""
        try:
            for step in place.path:
                at, key = at[key], step
            at[key] = act(at[key], place)
        except (KeyError, IndexError, TypeError):
            raise BadRequest(
                f"a personal value is said to be at {_shown(place.path)}, and there is none"
            ) from None
    return to_json(whole[""])

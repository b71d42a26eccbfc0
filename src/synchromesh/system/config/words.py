"""What msgspec says of a wrong value, in words about the place where a person wrote it."""

from __future__ import annotations


def in_words(message: str, where: str, *, thing: str = "key") -> str:
    """Put the place of a wrong value first, and name a missing one as what it is.

    Example:
        >>> in_words("Expected `int`, got `str` - at `$.port`", "services.a")
        'services.a.port: expected `int`, got `str`'
        >>> in_words("Object missing required field `sku`", "orders.place", thing="argument")
        'orders.place: argument `sku` is missing'
    """
    what, _, place = message.partition(" - at `$")
    field = what.removeprefix("Object missing required field ")
    said = f"{thing} {field} is missing" if field != what else f"{what[:1].lower()}{what[1:]}"
    return f"{where}{place.rstrip('`')}: {said}"

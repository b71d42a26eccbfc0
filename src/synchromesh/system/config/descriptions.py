"""Describes msgspec's errors by the place where the user wrote the invalid value."""

from __future__ import annotations


def describe_error(message: str, where: str, *, thing: str = "key") -> str:
    """Describe an invalid or missing value, its place first.

    Example:
        >>> describe_error("Expected `int`, got `str` - at `$.port`", "services.a")
        'services.a.port: expected `int`, got `str`'
        >>> describe_error("Object missing required field `sku`", "orders.place", thing="argument")
        'orders.place: argument `sku` is missing'
    """
    what, _, place = message.partition(" - at `$")
    field = what.removeprefix("Object missing required field ")
    text = f"{thing} {field} is missing" if field != what else f"{what[:1].lower()}{what[1:]}"
    return f"{where}{place.rstrip('`')}: {text}"

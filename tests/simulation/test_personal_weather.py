"""Personal data under power cuts and storms: every value has its key, and no plain byte is kept."""

from __future__ import annotations

import persons_app
from persons_app import Address, Confirmed, Customers, Register, customers, post
from synchromesh.personal import Erased
from synchromesh.testing import Books, InProcess, survive

EMAIL = "canary@example.org"
ANNA = Register("c-17", EMAIL, Address(EMAIL, "Ulm"))
BEA = Register("c-18", EMAIL)


async def correspond(client: InProcess) -> None:
    await client.call(Customers.register(ANNA), key="register")
    await client.call(Customers.register(BEA), key="register-bea")
    for name in ("a", "b", "c", "d"):
        await client.call(Customers.visit("c-17"), key=f"visit-{name}")
    await client.call(Customers.welcome(ANNA), key="welcome")
    client.erase("c-17")
    await client.call(Customers.confirm(Confirmed("c-17", EMAIL)), key="confirm")
    seen = await client.call(Customers.visit("c-17"), key="visit-last")
    assert seen.email == Erased()
    bea = await client.call(Customers.visit("c-18"), key="visit-bea")
    assert bea.email == EMAIL


def nothing_is_plain(books: Books) -> None:
    for service in ("customers", "post"):
        for (table,) in books.rows(service, "select name from sqlite_master where type = 'table'"):
            assert EMAIL not in repr(books.rows(service, f'select * from "{table!s}"')), table
    greeted = books.rows("post", "select count(*) from sent where what like 'greeting%'")
    assert greeted == [(2,)]
    keys = books._disk.rows("/customers.keys", "select name, key is null from subject order by 1")
    assert keys == [(None, 1), ("c-18", 0)]


def test_personal_data_survives_what_the_rest_survives() -> None:
    """A key is there wherever a value is, however the power fails; an erasure stays one."""
    persons_app.failing.clear()
    survived = survive(correspond, customers, post, check=nothing_is_plain, cuts_max=25, storms=6)
    assert survived.count["crash"] > 25

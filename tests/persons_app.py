"""Customers with personal data, and the post that writes to them: two databases and a relay.

It uses each place in which a service keeps what it is given: events, snapshots, messages, recorded
requests and answers, and the records of a saga.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from msgspec import Struct

from synchromesh import (
    Context,
    Contract,
    Decider,
    Decision,
    Migration,
    PublicEvent,
    Saga,
    Service,
    Transaction,
    command,
    event,
    query,
)
from synchromesh.personal import Erased, Personal, Subject

TOML = """
[system]
name = "correspondence"

[services.customers]
app = "persons_app:customers"

[services.post]
app = "persons_app:post"
"""


@dataclass(frozen=True)
class Address:
    street: str
    city: str


class Register(Struct, frozen=True):
    customer_id: Subject
    email: Personal[str]
    address: Personal[Address] | None = None


class Registered(Struct, frozen=True):
    customer_id: Subject
    email: Personal[str]
    address: Personal[Address] | None = None


class Seen(Struct, frozen=True):
    customer_id: str


class Card(Struct, frozen=True):
    customer_id: Subject
    email: Personal[str]
    visits: int


class Letter(Struct, frozen=True):
    to: Subject
    email: Personal[str]
    text: str


class Confirmed(Struct, frozen=True):
    customer_id: Subject
    by: Personal[str]


class Customers(Contract, Protocol, service="customers", version="1.0"):
    @command("POST /registrations")
    async def register(self, request: Register) -> Card: ...
    @command("POST /visits")
    async def visit(self, customer_id: str) -> Card: ...
    @command("POST /welcomes")
    async def welcome(self, request: Register) -> Card: ...
    @command("POST /confirmations")
    async def confirm(self, told: Confirmed) -> bool: ...
    @command("POST /changes")
    async def change(self, customer_id: Subject, email: Personal[str]) -> Card: ...
    @query("GET /mails/{customer_id}")
    async def mailed(self, customer_id: str) -> list[str]: ...

    registered: PublicEvent[Registered] = event(Registered, key="customer_id")


class Post(Contract, Protocol, service="post", version="1.0"):
    @command("POST /letters")
    async def send(self, letter: Letter) -> Letter: ...
    @command("POST /returns")
    async def take_back(self, letter: Letter) -> None: ...
    @query("GET /sent")
    async def sent(self) -> list[str]: ...


def _decide(asked: Register | Seen | None, card: Card | None) -> Decision[Card]:
    if isinstance(asked, Register):
        new = Registered(asked.customer_id, asked.email, asked.address)
        return Decision(Card(asked.customer_id, asked.email, 0), (new,))
    assert card is not None
    return Decision(card, () if asked is None else (asked,))


def _evolve(card: Card | None, happened: Registered | Seen) -> Card | None:
    if isinstance(happened, Registered):
        visits = 0 if card is None else card.visits
        return Card(happened.customer_id, happened.email, visits)
    assert card is not None
    return Card(card.customer_id, card.email, card.visits + 1)


customer: Decider[Card | None, Register | Seen | None, Card] = Decider(
    "customer",
    initial=None,
    decide=_decide,
    evolve=_evolve,
    events=(Registered, Seen),
    snapshot_every=3,
)

customers = Service(
    "customers",
    implements=Customers,
    migrations=[Migration(1, ("create table change(customer_id text)",), 1)],
)
post = Service(
    "post",
    implements=Post,
    migrations=[
        Migration(1, ("create table sent(what text not null)",), 1),
    ],
)
failing: set[str] = set()
"""Customers on whose registration the post fails."""
seen_by_handlers: list[object] = []


@customers.writes(Customers.register)
async def register(tx: Transaction, request: Register) -> Card:
    card = await tx.decide(customer, request.customer_id, request)
    tx.publish(
        Customers.registered, Registered(request.customer_id, request.email, request.address)
    )
    return card


@customers.writes(Customers.visit)
async def visit(tx: Transaction, customer_id: str) -> Card:
    return await tx.decide(customer, customer_id, Seen(customer_id))


async def note(tx: Transaction, customer_id: Subject, email: Personal[str]) -> Card:
    await tx.execute("insert into change values (?)", customer_id)
    return await tx.decide(customer, customer_id, Register(customer_id, email))


@customers.handles(Customers.change)
async def change(ctx: Context, customer_id: Subject, email: Personal[str]) -> Card:
    return await ctx.write(note, customer_id, email)


async def put_down(tx: Transaction, request: Register) -> Card:
    return await tx.decide(customer, request.customer_id, request)


async def strike(tx: Transaction, card: Card) -> None:
    seen_by_handlers.append(card)


@customers.saga(Register, deadline="1h")
async def welcoming(s: Saga, request: Register) -> Card:
    card = await s.write(put_down, request, undo=strike)
    letter = Letter(card.customer_id, card.email, "welcome")
    sent = await s.call(Post.send(letter), undo=Post.take_back)
    told = await s.event(Confirmed, within="30m")
    by = "nobody" if told is None else str(told.by)
    return Card(sent.to, f"{sent.email} confirmed by {by}", 1)


@customers.handles(Customers.welcome)
async def welcome(ctx: Context, request: Register) -> Card:
    run = await welcoming.start(ctx, request, id=f"welcome-{request.customer_id}")
    return await run.result(within_s=0.5) or Card(request.customer_id, "pending", 0)


@customers.writes(Customers.confirm)
async def confirm(tx: Transaction, told: Confirmed) -> bool:
    return await welcoming.tell(tx, f"welcome-{told.customer_id}", told)


@customers.projection(
    "mails", events=(Registered,), tables=("create table mail(id text, to_ text)",)
)
async def mails(tx: Transaction, registered: Registered) -> None:
    to = "" if isinstance(registered.email, Erased) else "somewhere"
    await tx.execute("insert into mail values (?, ?)", registered.customer_id, to)


@customers.handles(Customers.mailed)
async def mailed(ctx: Context, customer_id: str) -> list[str]:
    return await ctx.read("select to_ from mail where id = ?", customer_id, as_=str)


@post.handles(Post.send)
async def send(ctx: Context, letter: Letter) -> Letter:
    await ctx.write(enter, letter)
    return letter


async def enter(tx: Transaction, letter: Letter) -> Letter:
    await tx.execute("insert into sent values (?)", f"{letter.text} {letter.to}")
    return letter


@post.writes(Post.take_back)
async def take_back(tx: Transaction, letter: Letter) -> None:
    seen_by_handlers.append(letter)
    await tx.execute("delete from sent where what = ?", f"{letter.text} {letter.to}")


@post.on(Customers.registered)
async def greet(tx: Transaction, registered: Registered) -> None:
    if registered.customer_id in failing:
        raise RuntimeError("the post is on strike")
    seen_by_handlers.append(registered)
    await tx.execute("insert into sent values (?)", f"greeting {registered.customer_id}")


@post.handles(Post.sent)
async def sent(ctx: Context) -> list[str]:
    return await ctx.read("select what from sent order by rowid", as_=str)

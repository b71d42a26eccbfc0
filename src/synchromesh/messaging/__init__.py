"""Messaging: public events between services, by a relay over the log and an inbox (outbox pattern).

`publish` appends in the unit, the `Relay` delivers to each subscriber, the `Consumer` takes each
message once and parks what cannot be taken.
"""

from synchromesh.messaging.consumer import (
    SCHEMA,
    Consumer,
    DeadLetter,
    Dropped,
    MessageHandler,
)
from synchromesh.messaging.message import (
    DELIVER,
    Message,
    deliver_to,
    publish,
)
from synchromesh.messaging.relay import Relay, RelayOptions
from synchromesh.messaging.window import Window

__all__ = [
    "DELIVER",
    "SCHEMA",
    "Consumer",
    "DeadLetter",
    "Dropped",
    "Message",
    "MessageHandler",
    "Relay",
    "RelayOptions",
    "Window",
    "deliver_to",
    "publish",
]

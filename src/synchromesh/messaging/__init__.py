"""Messaging: public events between services, by a relay over the log and an inbox (outbox pattern).

`publish` appends in the unit, the `Relay` delivers to each subscriber, the `Consumer` takes each
message once and parks what cannot be taken.
"""

from synchromesh.messaging.consumer import (
    SCHEMA,
    Consumer,
    Dropped,
    MessageHandler,
    Parked,
)
from synchromesh.messaging.message import (
    DELIVER,
    Message,
    Receipt,
    Sender,
    deliver_to,
    message_of,
    publish,
    scope_of,
)
from synchromesh.messaging.relay import Relay, RelayOptions
from synchromesh.messaging.window import Window

__all__ = [
    "DELIVER",
    "SCHEMA",
    "Consumer",
    "Dropped",
    "Message",
    "MessageHandler",
    "Parked",
    "Receipt",
    "Relay",
    "RelayOptions",
    "Sender",
    "Window",
    "deliver_to",
    "message_of",
    "publish",
    "scope_of",
]

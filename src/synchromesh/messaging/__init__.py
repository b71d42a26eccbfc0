"""Messaging: public events between services, by a relay over the log and an inbox (outbox pattern).

`publish` appends in the unit, the `Relay` delivers to each subscriber, by calls or by a stream
(`Delivery`), the `Consumer` takes each message once. What cannot be taken is set aside, in order,
until a release or a person frees it.
"""

from synchromesh.messaging.consumer import Consumer, MessageHandler
from synchromesh.messaging.dead_letters import (
    SCHEMA,
    DeadLetter,
    Dropped,
    LetterState,
    Replayed,
    drop_letter,
    find_letter,
    parked_numbers,
)
from synchromesh.messaging.declared import Declared, declaration_of
from synchromesh.messaging.delivery import Delivery, DirectDelivery, Stream
from synchromesh.messaging.gone import (
    Forgotten,
    GoneSubscriber,
    end_subscriptions,
    forget_subscriber,
    gone_subscribers,
    still_declared,
)
from synchromesh.messaging.inspection import (
    ListedMessage,
    MessageGroup,
    SetAside,
    list_messages,
    show_message,
    summarize,
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
    "Declared",
    "Delivery",
    "DirectDelivery",
    "Dropped",
    "Forgotten",
    "GoneSubscriber",
    "LetterState",
    "ListedMessage",
    "Message",
    "MessageGroup",
    "MessageHandler",
    "Relay",
    "RelayOptions",
    "Replayed",
    "SetAside",
    "Stream",
    "Window",
    "declaration_of",
    "deliver_to",
    "drop_letter",
    "end_subscriptions",
    "find_letter",
    "forget_subscriber",
    "gone_subscribers",
    "list_messages",
    "parked_numbers",
    "publish",
    "show_message",
    "still_declared",
    "summarize",
]

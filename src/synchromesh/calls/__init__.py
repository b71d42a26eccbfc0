"""calls: contracts, operations, transports, and what one call goes through on its way."""

from synchromesh.calls.caller import Caller
from synchromesh.calls.contract import (
    Call,
    Command,
    Contract,
    Operation,
    PublicEvent,
    Query,
    command,
    event,
    events_of,
    operations_of,
    query,
)
from synchromesh.calls.dispatcher import Dispatcher, Handler
from synchromesh.calls.faults import Fault, FaultTable, Rule
from synchromesh.calls.forwarding import Forwarder, Forwarding
from synchromesh.calls.holding import HoldOptions, Holds
from synchromesh.calls.http_client import HttpTransport
from synchromesh.calls.http_server import HttpEdge
from synchromesh.calls.inproc import InProcessTransport
from synchromesh.calls.isolations import Isolation, Isolations
from synchromesh.calls.policies import OperationPolicy, Policies
from synchromesh.calls.tree import Incoming
from synchromesh.calls.wire import (
    Receiver,
    Reply,
    Request,
    Sender,
    Transport,
)

__all__ = [
    "Call",
    "Caller",
    "Command",
    "Contract",
    "Dispatcher",
    "Fault",
    "FaultTable",
    "Forwarder",
    "Forwarding",
    "Handler",
    "HoldOptions",
    "Holds",
    "HttpEdge",
    "HttpTransport",
    "InProcessTransport",
    "Incoming",
    "Isolation",
    "Isolations",
    "Operation",
    "OperationPolicy",
    "Policies",
    "PublicEvent",
    "Query",
    "Receiver",
    "Reply",
    "Request",
    "Rule",
    "Sender",
    "Transport",
    "command",
    "event",
    "events_of",
    "operations_of",
    "query",
]

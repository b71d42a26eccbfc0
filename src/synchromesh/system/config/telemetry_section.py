"""`[telemetry]`: what is exported to a collector, and which labels of requests go on."""

from __future__ import annotations

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec

from synchromesh.durations import duration
from synchromesh.errors import ConfigError
from synchromesh.propagation import BAGGAGE_KEYS_MAX, Propagation, is_baggage_key
from synchromesh.system.config.layers import Secret
from synchromesh.system.config.tls_sections import ClientTlsSection
from synchromesh.system.config.urls import shown, url_fault

RESOURCE_MAX = 32
METRICS_EVERY_MIN_S = 1.0

_GRPC_PORT = 4317
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]{1,64}")
_OURS = frozenset({"host", "connection", "transfer-encoding", "te", "expect", "upgrade"})
_OUR_RESOURCE = frozenset({"service.name", "service.instance.id"})


class TelemetrySection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[telemetry]`: where telemetry is exported to by OTLP/HTTP, and what goes on.

    Attributes:
        otlp: the URL of a collector, such as "http://127.0.0.1:4318", which `/v1/traces` and the
            like are put behind; "" exports nothing.
        signals: what it is sent; left out, all of them.
        metrics_every: how often it is sent what was counted.
        headers: fields of its requests, each by reference: "env:NAME" or "file:PATH".
        resource: attributes of what is exported, such as "deployment.environment.name".
        tls: whom we believe at an https:// URL, and what we show there.
        sample: the share of the traces that begin here and are exported, 0 to 1; those that come
            from outside say themselves whether they are.
        baggage: the keys of W3C baggage that are taken from clients, and go on with their calls.
    """

    otlp: Annotated[str, msgspec.Meta(examples=["https://collector.example:4318"])] = ""
    signals: list[Literal["traces", "logs", "metrics"]] = []
    metrics_every: str = "60s"
    headers: dict[str, Secret] = {}
    resource: dict[str, str] = {}
    tls: ClientTlsSection = ClientTlsSection()
    sample: float = 1.0
    baggage: list[str] = []

    def propagation(self) -> Propagation:
        """Return what is sampled, and which baggage is taken."""
        return Propagation.of(self.sample, self.baggage)

    def check(self) -> None:
        """Raise a ConfigError for what is wrong; its message is "KEY: WHY"."""
        if not 0 <= self.sample <= 1:
            raise ConfigError(f"sample: sample = {self.sample:g}; make it a number from 0 to 1")
        for key in self.baggage:
            if not is_baggage_key(key):
                raise ConfigError(
                    f"baggage: {key[:40]!r} is no key of baggage; use letters, digits, - and _"
                )
        if len(self.baggage) > BAGGAGE_KEYS_MAX:
            raise ConfigError(
                f"baggage: baggage has {len(self.baggage)} keys; make it {BAGGAGE_KEYS_MAX} or "
                "fewer: each goes with every call"
            )
        try:
            every_s = self.metrics_every_s()
        except ConfigError as error:
            raise ConfigError(f"metrics_every: {error.message}") from error
        if every_s < METRICS_EVERY_MIN_S:
            raise ConfigError(
                f"metrics_every: metrics_every = {self.metrics_every!r}; make it "
                f"{METRICS_EVERY_MIN_S:g}s or more"
            )
        self._check_export()

    def metrics_every_s(self) -> float:
        """Return how often metrics are sent."""
        return duration(self.metrics_every, "metrics_every")

    def _check_export(self) -> None:
        given = {
            "headers": self.headers,
            "resource": self.resource,
            "tls": self.tls != ClientTlsSection(),
        }
        if not self.otlp:
            idle = next((key for key, value in given.items() if value), None)
            if idle is not None:
                raise ConfigError(f"{idle}: has {idle}, which is of use with otlp alone; add it")
            return
        if fault := url_fault(self.otlp):
            raise ConfigError(f"otlp: otlp = {shown(self.otlp)!r}; {fault}")
        parts = urlsplit(self.otlp)
        if parts.port == _GRPC_PORT:
            raise ConfigError(
                f"otlp: otlp = {shown(self.otlp)!r}; port {_GRPC_PORT} is that of gRPC, and this "
                "is sent by HTTP: use the collector's port for that, which is 4318"
            )
        if re.search(r"/v1/(traces|metrics|logs)/?$", parts.path):
            raise ConfigError(
                f"otlp: otlp = {shown(self.otlp)!r}; leave out /v1/..., which is put behind it "
                "for each signal"
            )
        if given["tls"] and parts.scheme != "https":
            raise ConfigError("tls: has tls, which is of use at an https:// url alone")
        for name in self.headers:
            if not _HEADER.fullmatch(name) or name in _OURS or name.startswith("content-"):
                raise ConfigError(
                    f"headers: {name[:40]!r} cannot be a header here; use one in lower case that "
                    'says who we are, such as "authorization"'
                )
        for key in self.resource:
            if not key or key in _OUR_RESOURCE:
                raise ConfigError(
                    f"resource: {key!r} is not to be set; each service says it of itself"
                )
        if len(self.resource) > RESOURCE_MAX:
            raise ConfigError(
                f"resource: resource has {len(self.resource)} attributes; make it {RESOURCE_MAX} "
                "or fewer"
            )

"""`[external.NAME]`: where somebody else's service is, and which of its URLs are up."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from synchromesh.discovery import Endpoint, HealthOptions
from synchromesh.durations import duration
from synchromesh.errors import ConfigError
from synchromesh.system.config.discover_section import DiscoverSection
from synchromesh.system.config.tls_sections import ClientTlsSection
from synchromesh.system.config.urls import path_fault, shown, url_fault

URLS_MAX = 256
WEIGHT_MAX = 1_000_000


class HealthSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`health = {...}` of `[external.NAME]`: each URL is asked whether it is up.

    A check is a GET; an answer of 200 to 299 in time is a success. The first one of each URL
    decides alone. Where none is up requests go to all of them.

    Attributes:
        path: what is asked, below each URL.
        every: from the beginning of a check to that of the next.
        timeout: how long an answer may take; at most `every`.
        down_after: so many checks that fail in a row take a URL out.
        up_after: so many that succeed in a row bring it back; it is given more and more at first.
    """

    path: str = "/"
    every: str = "2s"
    timeout: str = "1s"
    down_after: int = 2
    up_after: int = 2

    def compile(self) -> HealthOptions:
        """Return the options that the section describes.

        Raises:
            ConfigError: a value is wrong; the message begins with its key.
        """
        path, _, _ = self.path.partition("?")
        if (
            not path.startswith("/")
            or path.startswith("//")
            or path_fault(path)
            or not _is_plain(self.path)
        ):
            raise ConfigError(
                f'path: {shown(self.path)!r} is no path; write one such as "/healthz", without '
                "segments of dots, and percent-encoded where that is needed"
            )
        seconds = {key: duration(getattr(self, key), key) for key in ("every", "timeout")}
        if seconds["timeout"] > seconds["every"]:
            raise ConfigError(
                f"timeout: {self.timeout!r} is longer than every = {self.every!r}; make it no "
                "longer, so that one check has ended before the next begins"
            )
        for key, count in (("down_after", self.down_after), ("up_after", self.up_after)):
            if count < 1:
                raise ConfigError(f"{key}: it is {count}; make it 1 or more")
        return HealthOptions(seconds["every"], seconds["timeout"], self.down_after, self.up_after)


class ExternalSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[external.NAME]`: somebody else's service, at one URL or several, or as a child process.

    It has either `url`, `urls`, `discover` or `command`. A child prints one line of JSON with its
    `port` when it is ready, such as `{"port": 8080}`, and ends on SIGTERM.

    Attributes:
        url: where it is: "http://HOST:PORT", or "https://HOST", which has to prove to be that host.
        urls: where it is, where it is there several times; requests are balanced between them.
        weights: the share of each of `urls`, in their order, such as [9, 1]; left out, requests go
            to who answers sooner.
        health: how it is found out which of `urls` are up; left out, by the requests alone.
        discover: what says where it is, by DNS or in a file; read again and again.
        tls: whom we believe at an https:// URL, and what we show there.
        command: the program of a child process and its arguments; `{python}` stands for this
            interpreter and `{data}` for the folder of the databases.
        env: variables of the child, besides this process's own; `{python}` and `{data}` as above.
    """

    url: str = ""
    urls: list[str] = []
    weights: list[int] = []
    health: HealthSection | None = None
    discover: DiscoverSection | None = None
    tls: ClientTlsSection = ClientTlsSection()
    command: list[str] = []
    env: dict[str, str] = {}

    @property
    def addresses(self) -> list[str]:
        """The URLs that are known before anything runs."""
        return [self.url] if self.url else self.urls

    def instances(self, name: str) -> tuple[str, ...]:
        """Return the names of its instances, as far as they are known before anything runs."""
        if self.discover is not None:
            return ()
        if not self.urls:
            return (name,)
        return tuple(f"{name}#{number}" for number in range(1, len(self.urls) + 1))

    def endpoints(self, name: str) -> tuple[Endpoint, ...]:
        """Return what is reached at the addresses."""
        weights: Sequence[int | None] = self.weights or [None] * len(self.addresses)
        named = zip(self.instances(name), self.addresses, weights, strict=True)
        return tuple(Endpoint(each, name, url, weight=weight) for each, url, weight in named)

    def check(self) -> None:
        """Raise a ConfigError for what is wrong; its message is "KEY: WHY", the key may be ""."""
        given = self.url, self.urls, self.command, self.discover
        if sum(map(bool, given)) != 1:
            raise ConfigError(": needs either url, urls, discover or command")
        self._check_discover()
        for key, url in (("url", self.url), *(("urls", each) for each in self.urls)):
            if (url or key == "urls") and (fault := url_fault(url)):
                raise ConfigError(f"{key}: {key} = {shown(url)!r}; {fault}")
        places = [each.lower().rstrip("/") for each in self.urls]
        twice = next((each for each in places if places.count(each) > 1), None)
        if twice is not None:
            raise ConfigError(
                f"urls: urls has {twice!r} twice; name each once, and give it a weight of 2"
            )
        if len(self.urls) > URLS_MAX:
            raise ConfigError(f"urls: urls are {len(self.urls)}; make it {URLS_MAX} or fewer")
        self._check_weights()
        if self.health is not None:
            if len(self.urls) < 2:
                raise ConfigError(
                    "health: has health, which is of use with several urls alone; name them, or "
                    "drop it"
                )
            try:
                self.health.compile()
            except ConfigError as error:
                key = error.message.partition(":")[0]
                raise ConfigError(f"health.{key}: health.{error.message}") from error
        if self.tls != ClientTlsSection() and not any(
            url.startswith("https://") for url in self.addresses
        ):
            raise ConfigError("tls: has tls, which is of use at an https:// url alone")

    def _check_discover(self) -> None:
        if self.discover is None:
            return
        if self.health is not None:
            raise ConfigError(
                "health: has health, which is of urls that are named; of those that discover finds "
                "whoever fails requests is passed over. Drop it"
            )
        try:
            self.discover.check()
        except ConfigError as error:
            key = error.message.partition(":")[0]
            raise ConfigError(f"discover.{key}: discover.{error.message}") from error

    def _check_weights(self) -> None:
        if self.weights and len(self.weights) != len(self.urls):
            raise ConfigError(
                f"weights: weights are {len(self.weights)} for {len(self.urls)} urls; give one for "
                "each of urls, in their order"
            )
        if any(weight < 1 for weight in self.weights):
            raise ConfigError(
                f"weights: weights has {min(self.weights)}; make each a whole number, 1 or more, "
                "and take a URL that is to get nothing out of urls"
            )
        if any(weight > WEIGHT_MAX for weight in self.weights):
            raise ConfigError(
                f"weights: weights has {max(self.weights)}; make each {WEIGHT_MAX} or less"
            )


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable() and not set(text) & set(" #\\")

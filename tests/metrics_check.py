"""Reads metrics as strictly as their formats are written: what a lenient parser would let pass."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_HEAD = re.compile(rf"# (HELP|TYPE|UNIT) ({NAME})(?: (.*))?")
_SAMPLE = re.compile(rf"({NAME})(?:\{{(.*)\}})? (\S+)")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"(?:,|$)')
_SUFFIXES = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_count", "_sum"),
}
Labels = tuple[tuple[str, str], ...]


@dataclass
class Shown:
    """A family as it is shown."""

    kind: str = ""
    help: str = ""
    unit: str = ""
    samples: dict[tuple[str, Labels], float] = field(default_factory=dict)

    def of(self, suffix: str, **labels: str) -> dict[Labels, float]:
        """Return the samples with that suffix and at least these labels."""
        wanted = set(labels.items())
        found = self.samples.items()
        return {own: value for (end, own), value in found if end == suffix and wanted <= set(own)}


def read(text: str, *, is_openmetrics: bool) -> dict[str, Shown]:
    """Return all families by name; fails where the text is not to the letter."""
    assert text.endswith("\n")
    lines = text.splitlines()
    if is_openmetrics:
        assert lines.pop() == "# EOF"
    found: dict[str, Shown] = {}
    current = ""
    for line in lines:
        head = _HEAD.fullmatch(line)
        if head is not None:
            word, name, told = head.groups()
            assert told, line
            if word == "TYPE" and not is_openmetrics and told == "counter":
                assert name.endswith("_total"), line
            name = name if is_openmetrics else name.removesuffix("_total")
            if name != current:
                assert name not in found, f"{name} is in two places"
                assert word == "HELP", line
                current, found[name] = name, Shown()
            shown = found[current]
            assert not shown.samples, line
            _note(shown, word, told)
            continue
        sample = _SAMPLE.fullmatch(line)
        assert sample is not None, line
        _take(found[current], current, *sample.groups())
    for name, shown in found.items():
        assert shown.kind in _SUFFIXES, name
        assert shown.help, name
        assert not shown.unit or name.endswith(f"_{shown.unit}"), name
        if shown.kind == "histogram":
            _check_histogram(name, shown)
    return found


def _note(shown: Shown, word: str, told: str) -> None:
    if word == "HELP":
        shown.help = told
    elif word == "TYPE":
        shown.kind = told
    else:
        shown.unit = told


def _take(shown: Shown, family: str, name: str, labels: str | None, value: str) -> None:
    suffix = name.removeprefix(family)
    assert name.startswith(family), name
    assert suffix in _SUFFIXES[shown.kind], name
    own = tuple(_LABEL.findall(labels or ""))
    assert "".join(match.group() for match in _LABEL.finditer(labels or "")) == (labels or "")
    assert len({label for label, _ in own}) == len(own), labels
    key = (suffix, tuple(sorted(own)))
    assert key not in shown.samples, f"{name}{{{labels}}} is there twice"
    number = float(value)
    assert math.isfinite(number), name
    assert shown.kind == "gauge" or number >= 0, name
    shown.samples[key] = number


def _check_histogram(name: str, shown: Shown) -> None:
    for labels, count in shown.of("_count").items():
        assert ("_sum", labels) in shown.samples, name
        buckets = [
            (math.inf if bound == "+Inf" else float(bound), value)
            for own, value in shown.of("_bucket", **dict(labels)).items()
            for bound in [dict(own)["le"]]
            if len(own) == len(labels) + 1
        ]
        assert buckets == sorted(buckets), name
        assert [value for _, value in buckets] == sorted(value for _, value in buckets), name
        assert buckets[-1] == (math.inf, count), name
    assert len(shown.of("_count")) == len(shown.of("_sum")), name

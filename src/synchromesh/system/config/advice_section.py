"""`[advice]`: which advice a system has a reason to ignore."""

from __future__ import annotations

import msgspec

from synchromesh.errors import ConfigError


class AdviceSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[advice]`: what `synchromesh advise` leaves out.

    Attributes:
        ignore: codes of advice, such as "unused-event", each with the reason.
    """

    ignore: dict[str, str] = {}

    def check(self) -> None:
        """Raise ConfigError for a code that there is not, or a reason that is none."""
        if not self.ignore:
            return
        # What gives advice is loaded for who ignores some.
        from synchromesh.advisor import CODES

        known = [each.code for each in CODES]
        for code, reason in self.ignore.items():
            if code not in known:
                raise ConfigError(
                    f"ignore names {code[:40]!r}, which is no code of advice; there are: "
                    f"{', '.join(known)}"
                )
            if not reason.strip():
                raise ConfigError(
                    f"ignore.{code} has no reason; write why this system may do so, for those who "
                    "come after"
                )

"""Draw the pictures of the documentation: `make pictures`; with `--record` terminals run anew."""

from __future__ import annotations

import sys
from pathlib import Path

from scripts import (
    breaker_picture,
    cascade_picture,
    growth_picture,
    machine_pictures,
    system_map,
    terminals,
)

FOLDER = Path(__file__).parents[1] / "docs/pictures"


def pictures() -> dict[Path, str]:
    """Return every picture, by where it stands."""
    return {
        FOLDER / "servo-works.svg": system_map.draw(),
        FOLDER / "breaker.svg": breaker_picture.draw(),
        FOLDER / "cascade.svg": cascade_picture.draw(),
        FOLDER / "growth.svg": growth_picture.draw(),
        FOLDER / "saga-rules.svg": machine_pictures.draw_rules(),
        **{
            FOLDER / f"{name}.svg": machine_pictures.draw(machine)
            for name, machine in machine_pictures.machines().items()
        },
        **{FOLDER / f"{name}.svg": terminals.draw(name) for name in terminals.SESSIONS},
    }


def main() -> None:
    """Write the pictures."""
    if "--record" in sys.argv[1:]:
        terminals.record()
    for path, drawn in pictures().items():
        path.write_text(drawn)
    page = cascade_picture.PAGE
    page.write_text(cascade_picture.page(page.read_text()))


if __name__ == "__main__":
    main()

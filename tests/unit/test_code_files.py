"""Whose a changed file is: by the imports of each part's own module."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from synchromesh.system.control.code_files import CodeFiles, files_of, how_to_take_up

FILES = {
    "contracts/__init__.py": "",
    "contracts/money.py": "",
    "contracts/orders.py": "from contracts.money import Cents\nimport json\n",
    "contracts/stock.py": "",
    "services/__init__.py": "",
    "services/orders/__init__.py": "from services.orders.service import orders\n",
    "services/orders/service.py": "from contracts import orders\nfrom .sagas import place\n",
    "services/orders/sagas.py": "from ..shared import helper\nimport contracts.stock as s\n",
    "services/shared.py": "",
    "services/stock.py": "def later():\n    from contracts.stock import Stock\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A system of two services."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_part_runs_its_module_and_what_that_imports_in_the_folder(folder: Path) -> None:
    """Packages, modules of packages, relative imports, and those within functions."""
    orders = files_of(["services.orders:orders"], folder)
    assert {str(path.relative_to(folder)) for path in orders} == set(FILES) - {"services/stock.py"}
    stock = files_of(["services.stock:stock"], folder)
    assert {str(path.relative_to(folder)) for path in stock} == {
        "contracts/__init__.py",
        "contracts/stock.py",
        "services/__init__.py",
        "services/stock.py",
    }


def test_only_parts_whose_files_have_changed_are_named(folder: Path) -> None:
    """Until they start anew; a file that is touched, or cannot be parsed, is no obstacle."""
    code = CodeFiles(folder, {"orders": ["services.orders:orders"], "stock": ["services.stock:x"]})
    for part in ("orders", "stock", "somebody"):
        code.started(part)
    os.utime(folder / "contracts/stock.py", ns=(1, 1))
    assert code.changed() == {}
    (folder / "contracts/money.py").write_text("def broken(:\n")
    assert code.changed() == {"orders": ["contracts/money.py"]}
    (folder / "contracts/stock.py").unlink()
    assert code.changed() == {
        "orders": ["contracts/money.py", "contracts/stock.py"],
        "stock": ["contracts/stock.py"],
    }
    code.started("stock")
    # At once, and not only when the files are looked at the next time.
    assert code.last == {"orders": ["contracts/money.py", "contracts/stock.py"]}
    assert code.changed() == code.last
    (folder / "contracts/stock.py").write_text("")
    (folder / "contracts/money.py").write_text("")
    assert code.changed() == {}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"stock": ["s.py"]}, "synchromesh restart NAME (with --split), "),
        ({"gateway": ["g.py"]}, "synchromesh gateway reload, "),
        (
            {"gateway": ["c.py", "g.py"], "stock": ["c.py"]},
            "synchromesh gateway reload (g.py), synchromesh restart NAME (with --split), ",
        ),
        (
            {"gateway": ["c.py"], "stock": ["c.py"]},
            "synchromesh restart NAME (with --split), ",
        ),
    ],
)
def test_what_takes_changed_files_up_is_said(changed: dict[str, list[str]], said: str) -> None:
    """The gateway's own code by a reload; what services import as well is not taken by that."""
    assert how_to_take_up(changed) == f"{said}synchromesh dev --reload, or a new start"

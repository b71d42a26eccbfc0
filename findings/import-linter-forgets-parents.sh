#!/bin/sh
# import-linter keeps a `forbidden` contract that the import of the module itself breaks.
#
# "`rules` imports no asyncio, not even through others" is checked along the import statements that
# lead away from `rules`. Python does more: before `shop.till.rules` it runs `shop/till/__init__.py`,
# and whatever that file imports is loaded too. No statement says so, hence the graph does not have
# it. The same contract is broken as soon as a module imports the parent by name.
#
# What to do: read a kept contract as "its code cannot reach asyncio", never as "importing it is
# cheap" or "works where asyncio is missing". For that, import the module in a process of its own and
# look at `sys.modules`; and let the `__init__.py` of packages with such modules be lazy (PEP 562).
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    import-linter==2.16 grimp==3.19
mkdir -p "$work/project/shop/till"
cd "$work/project"
touch shop/__init__.py
echo 'from shop.till.serving import serve' > shop/till/__init__.py
printf 'import asyncio\n\n\nasync def serve():\n    await asyncio.sleep(0)\n' > shop/till/serving.py
printf 'def price():\n    return 5\n' > shop/till/rules.py
printf 'from shop.till.rules import price\n' > shop/by_module.py
printf 'import shop.till\n' > shop/by_parent.py
contract() {
    printf '[importlinter]\nroot_package = shop\ninclude_external_packages = True\n\n'
    printf '[importlinter:contract:pure]\nname = pure\ntype = forbidden\n'
    printf 'source_modules = %s\nforbidden_modules = asyncio\n' "$1"
}
verdict() { # of the contract that one module reaches no asyncio
    contract "$1" > "$work/contract"
    if said=$("$work/venv/bin/lint-imports" --config "$work/contract" --no-cache 2>&1); then
        case $said in *"1 kept, 0 broken"*) echo kept ;; *) echo unclear ;; esac
    else
        case $said in *"0 kept, 1 broken"*) echo broken ;; *) echo unclear ;; esac
    fi
}
loads() { # whether the import of one module loads asyncio
    "$work/venv/bin/python" -c "import sys, $1; print('loads' if 'asyncio' in sys.modules else 'not')"
}
seen=
for module in shop.till.rules shop.by_module shop.by_parent; do
    seen="$seen$module $(verdict "$module") $(loads "$module"), "
done
"$work/venv/bin/python" - <<'PY'
import platform
from importlib.metadata import version

linter, graph = version("import-linter"), version("grimp")
print(f"version: import-linter {linter}, grimp {graph}, CPython {platform.python_version()}")
PY
echo "behaviour: one would expect a kept contract on asyncio to mean that importing the module loads" \
    "no asyncio; what the parent package imports is loaded and is not looked at"
echo "seen: contract and import: ${seen%, }"
test "${seen%, }" = "shop.till.rules kept loads, shop.by_module kept loads, shop.by_parent broken loads"

"""The stubs name exactly what the native module has, with the same arguments in the same order."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import ryzanstein
from ryzanstein import _core

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

STUBS = Path(ryzanstein.__file__).parent / "_core"
MODULES = {"__init__.pyi": _core, "ops.pyi": _core.ops}
Function = ast.FunctionDef


def parsed(file: str) -> list[ast.stmt]:
    return ast.parse((STUBS / file).read_text()).body


def names(body: list[ast.stmt]) -> set[str]:
    """Return what a stub says exists at run time: not aliases of types."""
    found = {node.name for node in body if isinstance(node, (ast.ClassDef, Function))}
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            is_alias = isinstance(node.annotation, ast.Name) and node.annotation.id == "TypeAlias"
            found |= set() if is_alias else {node.target.id}
        if isinstance(node, ast.ImportFrom):
            found |= {alias.name for alias in node.names if alias.asname == alias.name}
    return found


def public(thing: Any) -> set[str]:
    return {name for name in vars(thing) if not name.startswith("_")}


def pairs() -> Iterator[tuple[str, Any, Function]]:
    """Yield each function and method of the stubs, with its native counterpart."""
    for file, module in MODULES.items():
        for node in parsed(file):
            if isinstance(node, Function):
                yield node.name, getattr(module, node.name), node
            if isinstance(node, ast.ClassDef):
                for method in node.body:
                    is_property = isinstance(method, Function) and method.decorator_list
                    if isinstance(method, Function) and not is_property:
                        native = getattr(getattr(module, node.name), method.name)
                        yield f"{node.name}.{method.name}", native, method


def native_arguments(function: Any) -> list[str]:
    """Return argument names from the signature pybind11 writes into the docstring."""
    signature = function.__doc__.splitlines()[0]
    inside = signature[signature.index("(") + 1 : signature.rindex(") ->")]
    depth, flat = 0, ""
    for character in inside:
        depth += (character in "[(") - (character in "])")
        flat += character if depth == 0 else ""
    names = [re.split(r"[:=]", part)[0].strip() for part in flat.split(",") if part.strip()]
    return [name for name in names if name not in ("self", "*")]


@pytest.mark.parametrize(("file", "module"), MODULES.items())
def test_the_same_names(file: str, module: ModuleType) -> None:
    assert names(parsed(file)) == public(module)


@pytest.mark.parametrize(
    "node", [node for node in parsed("__init__.pyi") if isinstance(node, ast.ClassDef)]
)
def test_the_same_members(node: ast.ClassDef) -> None:
    native = getattr(_core, node.name)
    stub = {member.name for member in node.body if isinstance(member, Function)}
    assert stub - {"__init__"} == public(native)
    for member in node.body:
        if isinstance(member, Function) and member.decorator_list:
            decorator = ast.unparse(member.decorator_list[0])
            assert type(vars(native)[member.name]).__name__ == decorator


@pytest.mark.parametrize(("name", "native", "stub"), list(pairs()))
def test_the_same_arguments(name: str, native: Any, stub: Function) -> None:
    arguments = [argument.arg for argument in (*stub.args.args, *stub.args.kwonlyargs)]
    assert [a for a in arguments if a != "self"] == native_arguments(native), name


def test_every_stub_is_checked() -> None:
    assert {path.name for path in STUBS.glob("*.pyi")} == set(MODULES)

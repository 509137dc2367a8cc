"""The rules of the source tree: who may include or import whom, sizes, and what is never called."""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
PACKAGE = ROOT / "ryzanstein"
SOURCES = sorted(path for path in CSRC.rglob("*") if path.suffix in (".h", ".cpp"))
MODULES = sorted(PACKAGE.rglob("*.py"))
PYTHON = sorted(
    path
    for top in ("ryzanstein", "tests", "bench", "training")
    for path in (ROOT / top).rglob("*.py")
)
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
    "contracts"
]

MAX_FILE_LINES = 800
MAX_FUNCTION_LINES = 60
MAX_KERNEL_LINES = 120


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def short(paths: list[Path]) -> list[str]:
    return [relative(path) for path in paths]


# What each folder of csrc may include besides itself. kv takes the page layout from kernels/ops.h.
MAY_INCLUDE = {
    "base": set[str](),
    "cpu": {"base"},
    "quant": {"base"},
    "kernels": {"quant", "cpu", "base"},
    "kv": {"kernels", "quant", "cpu", "base"},
    "sampling": {"kv", "kernels", "quant", "cpu", "base"},
    "model": {"kv", "kernels", "quant", "cpu", "base"},
    "bindings": {"model", "sampling", "kv", "kernels", "quant", "cpu", "base"},
}
TIERS = {"scalar", "avx2", "avxvnni", "avx512", "avx512vbmi"}
# All that code compiled for one tier may see: anything else could bring inline functions whose
# one copy in the module would then need that tier.
TIER_PROJECT = re.compile(r"kernels/(ops\.h|(vector|scalar|avx2|avxvnni|avx512|avx512vbmi)/\w+\.h)")
TIER_PLAIN_DATA = {
    "base/dtype.h",
    "kernels/lookup_format.h",
    "quant/grouped.h",
    "quant/screen_format.h",
    "quant/ternary.h",
}
TIER_SYSTEM = {"cmath", "cstddef", "cstdint", "cstring", "immintrin.h"}


@cache
def includes(path: Path) -> list[tuple[bool, str]]:
    """Return (is of the project, name) of each include."""
    found = re.findall(r'^\s*#\s*include\s*(["<])([^">]+)[">]', path.read_text(), re.MULTILINE)
    return [(mark == '"', name) for mark, name in found]


@pytest.mark.parametrize("path", SOURCES, ids=short(SOURCES))
def test_includes_point_down(path: Path) -> None:
    folder = path.relative_to(CSRC).parts[0]
    for ours, name in includes(path):
        if ours:
            assert (CSRC / name).exists(), f"{name} is not a path from csrc"
            assert name.split("/")[0] in MAY_INCLUDE[folder] | {folder}, name
        if folder != "bindings":
            assert not re.match(r"pybind11/|Python\.h|numpy/", name), name


@pytest.mark.parametrize("tier", sorted(TIERS))
def test_tiers_see_plain_data_only(tier: str) -> None:
    queue = [path for path in SOURCES if path.parent == CSRC / "kernels" / tier]
    assert queue
    seen = set(queue)
    for path in queue:
        for ours, name in includes(path):
            if not ours:
                assert name in TIER_SYSTEM, f"{relative(path)} includes <{name}>"
                continue
            allowed = TIER_PROJECT.fullmatch(name) or name in TIER_PLAIN_DATA
            assert allowed, f"{relative(path)} includes {name}"
            if (header := CSRC / name) not in seen:
                seen.add(header)
                queue.append(header)


@cache
def code(path: Path) -> str:
    """Return C++ source with comments and literals blanked, line for line."""
    pattern = r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\''
    blank = re.compile(pattern, re.DOTALL)
    return blank.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), path.read_text())


def functions(path: Path) -> list[tuple[int, int]]:
    """Return first line and length of each function: braces that hold no namespace or class."""
    source = re.sub(r"^\s*#.*(\\\n.*)*$", "", code(path), flags=re.MULTILINE)
    found = []
    depth, begin, containers = 0, 0, 0
    for match in re.finditer(r"[{}]", source):
        if match[0] == "}":
            depth -= 1
            if depth == containers and begin:
                line = source.count("\n", 0, match.start()) + 1
                found.append((begin, line - begin + 1))
                begin = 0
            containers = min(containers, depth)
            continue
        head = re.split(r"[;{}]", source[: match.start()])[-1]
        is_container = re.search(r"\b(namespace|class|struct|enum|union|extern)\b[^()]*$", head)
        if depth == containers and is_container:
            containers += 1
        elif depth == containers:
            begin = source.count("\n", 0, match.start() - len(head.lstrip())) + 1
        depth += 1
    return found


def test_the_measure_of_functions() -> None:
    lines = {path.name: functions(path) for path in SOURCES}
    assert max(length for _, length in lines["decoder.cpp"]) > 20
    assert all(begin > 0 and length > 0 for found in lines.values() for begin, length in found)
    assert sum(map(len, lines.values())) > 200


@pytest.mark.parametrize("path", SOURCES, ids=short(SOURCES))
def test_functions_in_cpp_are_short(path: Path) -> None:
    limit = MAX_KERNEL_LINES if "kernels" in path.parts else MAX_FUNCTION_LINES
    # Statements in sequence, one for each thing bound, are no harder to read for being many.
    if path.parent.name == "bindings":
        limit = MAX_KERNEL_LINES
    for line, length in functions(path):
        assert length <= limit, f"{relative(path)}:{line} has {length} lines"


@pytest.mark.parametrize("path", SOURCES, ids=short(SOURCES))
def test_the_core_neither_prints_nor_exits(path: Path) -> None:
    calls = r"\b(abort|exit|_exit|quick_exit|_Exit|terminate|f?printf|puts|fputs|perror)\s*\("
    found = re.search(rf"{calls}|\bstd::(cerr|cout|clog)\b|#include <iostream>", code(path))
    assert found is None, f"{relative(path)}: {found[0] if found else ''}"


@pytest.mark.parametrize("path", SOURCES, ids=short(SOURCES))
def test_sources_are_ascii(path: Path) -> None:
    assert path.read_bytes().isascii()


@pytest.mark.parametrize("path", SOURCES + PYTHON, ids=short(SOURCES + PYTHON))
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@pytest.mark.parametrize(
    "path", [path for path in PYTHON if ROOT / "tests" not in path.parents], ids=relative
)
def test_functions_in_python_are_short(path: Path) -> None:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{node.name} has {length} lines"


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {module_name(path) for path in MODULES} | {"ryzanstein._core", "ryzanstein._core.ops"}


def imports(path: Path) -> set[str]:
    """Return every module that a file imports, its own package's by their full names."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            module = node.module or ""
            for alias in node.names:
                name = f"{module}.{alias.name}"
                found.add(name if name in NAMES else module)
    return found


def layers() -> list[set[str]]:
    """Return the layers of pyproject.toml's contract, highest first."""
    (contract,) = (contract for contract in CONTRACTS if contract["type"] == "layers")
    return [set(re.findall(r"[\w.]+", line)) for line in contract["layers"]]


def member(name: str) -> str | None:
    """Return the part of a layer that a module belongs to."""
    parts = name.split(".")
    prefixes = {".".join(parts[: i + 1]) for i in range(len(parts))}
    return next((entry for layer in layers() for entry in layer & prefixes), None)


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_imports_point_down(path: Path) -> None:
    """The contract that import-linter checks in full, as far as the standard library can."""
    name = module_name(path)
    if name == "ryzanstein":
        return  # the public names, from every layer
    level = {entry: depth for depth, layer in enumerate(layers()) for entry in layer}
    here = member(name)
    assert here is not None, f"{name} is in no layer of pyproject.toml"
    for other in imports(path):
        if other == "ryzanstein":
            assert here == "ryzanstein.cli", f"{name} imports the package's public names"
        elif other.startswith("ryzanstein."):
            there = member(other)
            assert there is not None, other
            assert there == here or level[there] > level[here], f"{name} imports {other}"


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_no_training_framework_is_imported(path: Path) -> None:
    (contract,) = (contract for contract in CONTRACTS if contract["type"] == "forbidden")
    forbidden = set(contract["forbidden_modules"])
    assert forbidden >= {"torch", "transformers"}
    assert not {name.split(".")[0] for name in imports(path)} & forbidden


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_the_library_does_not_print(path: Path) -> None:
    calls = [node.func for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
    names = {call.id for call in calls if isinstance(call, ast.Name)}
    assert "print" not in names or module_name(path) == "ryzanstein.cli"


def is_command(node: ast.stmt) -> bool:
    """Whether a function is there for the command line's sake: `@app.command(...)`."""
    decorators = node.decorator_list if isinstance(node, ast.FunctionDef) else []
    return any(ast.unparse(decorator).startswith("app.") for decorator in decorators)


def rank(name: str) -> tuple[int, str]:
    """Order as ruff does: CONSTANTS, Classes, the rest."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_all_is_complete_and_sorted(path: Path) -> None:
    body = tree(path).body
    defined = {
        node.name
        for node in body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not is_command(node)
    }
    assignments = {
        target.id: node.value
        for node in body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    public = {name for name in defined if not name.startswith("_")}
    listed = ast.literal_eval(assignments["__all__"]) if "__all__" in assignments else []
    assert public <= set(listed)
    assert listed == sorted(listed, key=rank)
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    aliases = {
        node.target.id
        for node in body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    assert set(listed) <= defined | set(assignments) | imported | aliases

"""The jinja2 environment that chat templates run in: theirs is code from strangers.

jinja2's own sandbox keeps a template from Python's internals. This one also bounds the time and the
memory it may take: every iteration and call looks at the clock, every value it makes is weighed,
and whatever could make a large one from small ones in a single operation is refused beforehand.
"""

from __future__ import annotations

import json
import re
import sys
import time
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from string import Formatter
from typing import TYPE_CHECKING, Any, TypeVar

from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.filters import do_indent, do_replace, sync_do_join
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_eval_context
from jinja2.visitor import NodeTransformer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from jinja2.nodes import EvalContext
    from jinja2.parser import Parser
    from jinja2.runtime import Context

__all__ = ["TemplateEnvironment", "TemplateLimitError"]

_Value = TypeVar("_Value")

# A template takes a millisecond and makes a few times its messages; a prompt of 16 MiB is no
# model's.
_MAX_CPU_SECONDS = 2.0
_MAX_VALUE_BYTES = 16 << 20
_MAX_TOTAL_BYTES = 256 << 20
_MAX_INTEGER_BITS = 4096

# What a value takes besides its text, about.
_OBJECT_BYTES = 64

# fmt: off
# Methods of strings that make at most a few times what they are given.
_STRING_METHODS = frozenset({
    "capitalize", "casefold", "count", "endswith", "find", "format", "index", "isalnum",
    "isalpha", "isascii", "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric",
    "isprintable", "isspace", "istitle", "isupper", "join", "lower", "lstrip", "partition",
    "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rpartition", "rsplit",
    "rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper",
})
# Filters that do, of which `indent`, `join`, `replace` and `tojson` are bounded here.
_FILTERS = frozenset({
    "abs", "attr", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first",
    "float", "forceescape", "groupby", "indent", "int", "items", "join", "last", "length",
    "list", "lower", "map", "max", "min", "reject", "rejectattr", "replace", "reverse",
    "safe", "select", "selectattr", "sort", "string", "title", "tojson", "trim", "truncate",
    "unique", "upper", "urlencode", "wordcount", "wordwrap",
})
# fmt: on

_WIDE_PERCENT = re.compile(r"%(\([^)]*\))?[^a-zA-Z%]*(\d{4}|\*)")
_WIDE_FORMAT = re.compile(r"\d{4}|\{")


class TemplateLimitError(Exception):
    """The template takes more time or memory than a chat template needs."""


class _Budget:
    """What one rendering may still take."""

    def __init__(self) -> None:
        self._deadline = time.thread_time() + _MAX_CPU_SECONDS
        self._left = _MAX_TOTAL_BYTES

    def step(self) -> None:
        if time.thread_time() > self._deadline:
            raise TemplateLimitError(f"it takes more than {_MAX_CPU_SECONDS:g} s")

    def charge(self, num_bytes: int) -> None:
        if num_bytes > _MAX_VALUE_BYTES:
            raise TemplateLimitError(f"it makes a value of more than {_MAX_VALUE_BYTES >> 20} MiB")
        self._left -= num_bytes
        if self._left < 0:
            raise TemplateLimitError(f"it makes more than {_MAX_TOTAL_BYTES >> 20} MiB of values")
        self.step()


_BUDGET: ContextVar[_Budget] = ContextVar("_BUDGET")


class _QuietNamespace(Namespace):
    """jinja2's `namespace` without its contents as text, which could be exponential."""

    def __repr__(self) -> str:
        return "<namespace>"


class _Generation(Extension):
    """Accepts `{% generation %}`, which marks assistant text for training, as if absent."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Metered(NodeTransformer):
    """Makes calls of what jinja2 compiles to plain Python: iterations, literals and `~`."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 (jinja2 names it)
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_call("step")))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call("joined", *node.nodes)

    def _weigh(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        return _call("weighed", node)

    visit_List = visit_Dict = _weigh  # noqa: N815

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        return self._weigh(node) if node.ctx == "load" else node


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox whose templates end: render them inside `limits()`.

    Raises:
        TemplateLimitError: while rendering, a template that takes too much time or memory.
        SecurityError: while rendering, one that touches what it must not.
    """

    intercepted_binops = frozenset(["*", "**", "%", "+"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            # Folding constants would run parts of the template while it is compiled, unbounded.
            optimized=False,
            extensions=["jinja2.ext.loopcontrols", _Generation],
        )
        self.filters |= {"indent": _indent, "join": _join, "replace": _replace, "tojson": _tojson}
        self.filters = {name: _weighing(self.filters[name]) for name in _FILTERS}
        del self.globals["lipsum"]
        self.globals["namespace"] = _QuietNamespace

    @staticmethod
    @contextmanager
    def limits() -> Iterator[None]:
        """Give the templates rendered in the block a fresh budget."""
        token = _BUDGET.set(_Budget())
        try:
            yield
        finally:
            _BUDGET.reset(token)

    def step(self) -> None:
        """Do nothing, which being a call is counted."""

    def weighed(self, value: _Value) -> _Value:
        """Return a value that the budget has room for."""
        _BUDGET.get().charge(_size(value))
        return value

    def joined(self, *parts: object) -> str:
        """Return the text of all parts, one after the other."""
        return self.weighed(_join_parts(map(str, parts)))

    def concat(self, parts: Iterable[str]) -> str:
        """Join the output of a template, a macro or a block."""
        return _join_parts(parts)

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call what a template calls."""
        _BUDGET.get().step()
        owner = getattr(function, "__self__", None)
        if isinstance(owner, str) and function.__name__ == "join" and args:
            args = (list(args[0]), *args[1:])
            _check_bytes(len(owner) * len(args[0]))
        elif isinstance(owner, str) and function.__name__ == "replace":
            _check_replacement(owner, *args[:2])
        result = super().call(context, function, *args, **kwargs)
        return result if owner is self else self.weighed(result)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute `left operator right`."""
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            _check_integer(left.bit_length() * abs(right))
        elif operator == "*":
            _check_product(left, right)
        elif operator == "%" and isinstance(left, str) and _WIDE_PERCENT.search(left):
            raise TemplateLimitError("it pads a text to an absurd width")
        return self.weighed(super().call_binop(context, operator, left, right))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Return whether a template may use an attribute."""
        if isinstance(obj, str | bytes) and attr not in _STRING_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Return `str.format` made safe, None for anything else."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            for _, _, spec, _ in Formatter().parse(value.__self__):
                if _WIDE_FORMAT.search(spec or ""):
                    raise TemplateLimitError("it pads a text to an absurd width")
        return wrapped

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template: nodes.Template = _Metered().visit(super()._parse(source, name, filename))
        return template


def _call(method: str, *args: nodes.Expr) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(method), list(args), [], None, None)


def _size(value: object) -> int:
    """Return about how many bytes a value takes, or its text would, if that is at most a value's.

    What a container holds twice counts twice, as it would in its text.
    """
    total = 0
    pending = [value]
    while pending and total <= _MAX_VALUE_BYTES:
        item = pending.pop()
        total += sys.getsizeof(item) if isinstance(item, str) else _OBJECT_BYTES
        if isinstance(item, dict):
            pending += item.keys()
            pending += item.values()
        elif isinstance(item, list | tuple | set | frozenset):
            if len(item) * _OBJECT_BYTES > _MAX_VALUE_BYTES:
                return _MAX_VALUE_BYTES + 1
            pending += item
    return total


def _weighing(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def weighed(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        _BUDGET.get().charge(_size(result))
        return result

    return weighed


def _check_bytes(num_bytes: int) -> None:
    if num_bytes > _MAX_VALUE_BYTES:
        _BUDGET.get().charge(num_bytes)


def _check_integer(num_bits: int) -> None:
    if num_bits > _MAX_INTEGER_BITS:
        raise TemplateLimitError(f"it makes a number of more than {_MAX_INTEGER_BITS} bits")


def _check_product(left: object, right: object) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _check_integer(left.bit_length() + right.bit_length())
    for value, times in ((left, right), (right, left)):
        if isinstance(times, int) and isinstance(value, str | bytes | list | tuple):
            _check_bytes(_size(value) * times)


def _check_replacement(text: str, old: object = "", new: object = "") -> None:
    _check_bytes(text.count(str(old)) * len(str(new)))


@pass_eval_context
def _replace(eval_ctx: EvalContext, s: str, old: str, new: str, count: int | None = None) -> str:
    _check_replacement(str(s), old, new)
    return do_replace(eval_ctx, s, old, new, count)


@pass_eval_context
def _join(
    eval_ctx: EvalContext, value: Iterable[Any], d: str = "", attribute: str | int | None = None
) -> str:
    items = list(value)
    _check_bytes(len(str(d)) * len(items))
    return sync_do_join(eval_ctx, items, d, attribute)


def _indent(s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    added = width if isinstance(width, int) else len(width)
    _check_bytes((s.count("\n") + 1) * added)
    return do_indent(s, width, first, blank)


def _tojson(value: Any, indent: int | None = None, **options: Any) -> str:
    # jinja2's own filter escapes HTML, which would show in the prompt.
    if isinstance(indent, int):
        _check_bytes(indent << 10)
    encoder = json.JSONEncoder(ensure_ascii=False, indent=indent, **options)
    return _join_parts(encoder.iterencode(value))


def _join_parts(parts: Iterable[str]) -> str:
    kept = []
    total = 0
    for part in parts:
        total += len(part)
        if total > _MAX_VALUE_BYTES:
            raise TemplateLimitError(f"it writes more than {_MAX_VALUE_BYTES >> 20} MiB")
        kept.append(part)
    return "".join(kept)

"""A jinja2 sandbox with a budget: foreign templates end in bounded time and memory.

jinja2's ImmutableSandboxedEnvironment keeps a template away from Python's internals; it does not
keep it from looping or growing. Here every loop iteration, macro call, operator that can grow a
value, container, filter and method call is charged to one budget (work units: characters and
elements) and checks one deadline, inside this process, so that it works wherever Python runs. What
could not be bounded that way is left out: include, import, extends, `lipsum` and a few filters.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jinja2 import nodes
from jinja2.environment import Environment
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import make_attrgetter
from jinja2.nodes import EvalContext
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.visitor import NodeTransformer

from .. import limits

ABSENT_FILTERS = ("pprint", "random", "striptags", "urlize", "wordwrap", "xmlattr")
ABSENT_METHODS = frozenset({"encode", "expandtabs", "to_bytes", "translate"})
FORBIDDEN = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)
WIDEST = 10_000  # columns that a width argument or a format specification may ask for
DEEPEST = 100  # containers in one another
INT_BITS = 1 << 16
WIDTHS = frozenset(
    {"center", "ljust", "rjust", "zfill", "indent", "batch", "slice", "tojson", "round"}
)
NUMBER = re.compile(r"\d+")
# One field of `%` formatting: key, flags, width, precision, kind.
PERCENT = re.compile(r"%(?:\([^()]*\))?[-+ #0]*(\*|\d+)?(?:\.(\*|\d+)?)?[hlL]?(.)", re.DOTALL)
NESTED_KEY = re.compile(r"%\([^()]*\(")


class LimitError(RuntimeError):
    """A template asked for more time, memory or output than it may have."""


class Budget:
    """What one rendering may still spend.

    A value's weight is its size with everything in it counted as often as it appears, so a list of
    two equal lists weighs both: no small construction can print as a huge one. Its depth is how
    far containers nest.
    """

    def __init__(self) -> None:
        self.work = 64 * limits.TEMPLATE_OUTPUT_BYTES
        self.value = 2 * limits.TEMPLATE_OUTPUT_BYTES
        self.deadline = time.monotonic() + limits.TEMPLATE_SECONDS
        # id -> weight, depth and the container, which keeps its id from being reused
        self._known: dict[int, tuple[int, int, Any]] = {}

    def tick(self, cost: int = 1) -> None:
        """Charge work and look at the clock."""
        self.work -= cost
        if self.work < 0:
            raise LimitError("the template does more work than any chat needs")
        if time.monotonic() > self.deadline:
            raise LimitError(f"the template runs longer than {limits.TEMPLATE_SECONDS:g} s")

    def admit(self, size: int) -> None:
        """Refuse a value before it is made."""
        if size > self.value:
            raise LimitError(
                f"the template makes a value of size {size}, the limit is {self.value}"
            )

    def weighed(self, value: Any) -> Any:
        """The value itself, charged and within the limit."""
        weight = self.measure(value)[0]
        self.admit(weight)
        self.tick(weight)
        return value

    def measure(self, value: Any) -> tuple[int, int]:
        """Weight and depth. Containers cannot change in this sandbox, so each is measured once;
        a namespace can, but prints as a name only, and weighs nothing more."""
        if isinstance(value, (str, bytes)):
            return len(value) + 1, 0
        if isinstance(value, int):
            return 1 + value.bit_length() // 32, 0
        if not isinstance(value, (list, tuple, dict)):
            return 1, 0
        known = self._known.get(id(value))
        if known is None:
            parts = [self.measure(item) for item in _items(value)]
            weight = 1 + sum(part[0] for part in parts)
            depth = 1 + max((part[1] for part in parts), default=0)
            if depth > DEEPEST:
                raise LimitError(f"a value nested more than {DEEPEST} deep")
            known = self._known[id(value)] = (weight, depth, value)
        return known[:2]


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return [item for pair in value.items() for item in pair]
    return value  # type: ignore[no-any-return]


class _LimitedFormatter(SandboxedFormatter):
    """`str.format` for a template: names as the sandbox looks them up, sizes within the budget."""

    def __init__(self, environment: LimitedEnvironment) -> None:
        super().__init__(environment)
        self._budget, self._size = environment.budget, 0

    def format_field(self, value: Any, format_spec: str) -> str:
        if any(_columns(number) > WIDEST for number in NUMBER.findall(format_spec)):
            raise LimitError(f"a format string asks for more than {WIDEST} columns")
        self._budget.measure(value)
        text: str = super().format_field(value, format_spec)
        self._size += len(text)
        self._budget.admit(self._size)
        self._budget.tick(1 + len(text))
        return text


class Generation(Extension):
    """`{% generation %}…{% endgeneration %}`: marks what the model said; renders as it stands."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """transformers' chat template environment under a `Budget` (`with_budget`).

    Not shared between threads: one rendering at a time.
    """

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(
        self, filters: Mapping[str, Callable[..., Any]], globals: Mapping[str, Any]
    ) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            finalize=self._weighed,
            extensions=[Generation, loopcontrols],
        )
        self.budget = Budget()
        self.filters.update(filters)
        for name in ABSENT_FILTERS:
            del self.filters[name]
        for name, run in list(self.filters.items()):
            self.filters[name] = self._limited(name, run)
        del self.globals["lipsum"]
        self.globals.update(globals)

    def prepare(self, source: str) -> nodes.Template:
        """The parsed template with charges put in; TemplateSyntaxError for what may not be."""
        tree = self.parse(source)
        for banned in tree.find_all(FORBIDDEN):
            what = type(banned).__name__.lower()
            self._parse_error(f"{what} is not available in chat templates", banned.lineno)
        for node in tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock, nodes.Block)):
            text = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
            turn = _call("spent", [nodes.Const(1 + text)], node.lineno)
            node.body.insert(0, nodes.ExprStmt(turn).set_lineno(node.lineno))  # type: ignore[attr-defined]
            if isinstance(node, nodes.For) and node.test is not None:
                node.test = nodes.And(turn, node.test).set_lineno(node.lineno)
        _Charging().visit(tree)
        return tree

    def _parse_error(self, message: str, line: int) -> None:
        from jinja2.exceptions import TemplateSyntaxError

        raise TemplateSyntaxError(message, line)

    # What generated code calls.

    def spent(self, cost: int) -> bool:
        self.budget.tick(cost)
        return True

    def weighed(self, value: Any) -> Any:
        return self.budget.weighed(value)

    def joined(self, *parts: Any) -> str:
        """The `~` operator."""
        for part in parts:
            self.budget.weighed(part)
        texts = [str(part) for part in parts]
        self.budget.admit(sum(map(len, texts)))
        return "".join(texts)

    # What jinja2 calls.

    def _weighed(self, value: Any) -> Any:
        return self.budget.weighed(value)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Every call a template makes; the names are jinja2's, out of the way of keywords."""
        method = getattr(__obj, "__wrapped__", __obj)
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, (str, bytes, int)) and name not in ("format", "format_map"):
            if name == "join":  # the filter's order: what is joined first
                args = __self._admit(name, (*args, owner), kwargs)[:1]
            else:
                args = __self._admit(name, (owner, *args), kwargs)[1:]
        __self.budget.tick()
        return __self.budget.weighed(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = self.budget
        if operator == "*" and isinstance(left, int) and isinstance(right, int):
            _bits(left.bit_length() + right.bit_length())
        elif operator == "*" and isinstance(right, int):
            budget.admit(budget.measure(left)[0] * max(right, 0))
        elif operator == "*" and isinstance(left, int):
            budget.admit(budget.measure(right)[0] * max(left, 0))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _bits(left.bit_length() * abs(right))
        elif operator == "%" and isinstance(left, (str, bytes)):
            given = right if isinstance(right, (tuple, dict)) else (right,)
            self._admit_percent(left if isinstance(left, str) else left.decode("latin-1"), given)
        return budget.weighed(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format` and `format_map`, looked up through the sandbox and within the budget."""
        text = getattr(value, "__self__", None)
        name = getattr(value, "__name__", "")
        if not isinstance(text, str) or name not in ("format", "format_map"):
            return None
        formatter = _LimitedFormatter(self)

        def formatted(*args: Any, **kwargs: Any) -> str:
            if name == "format":
                return formatter.vformat(text, args, kwargs)
            (mapping,) = args
            return formatter.vformat(text, (), mapping)

        return functools.update_wrapper(formatted, value)

    def _admit_percent(self, text: str, given: Any) -> None:
        """Refuse `%` formatting that would be out of proportion. given: a tuple, or a mapping."""
        if NESTED_KEY.search(text) or text.count("%") > WIDEST:
            raise LimitError(
                f"a format string with parentheses in a name, or more than {WIDEST} fields"
            )
        values = list(given.values()) if isinstance(given, dict) else list(given)
        weights = [self.budget.measure(value)[0] for value in values]
        fields = [match for match in PERCENT.finditer(text) if match[3] != "%"]
        numbers = [number for match in fields for number in match.groups()[:2] if number]
        columns = [_width(value) for value in values if isinstance(value, int)]
        sizes = [max(columns, default=0) if n == "*" else _columns(n) for n in numbers]
        if max(sizes, default=0) > WIDEST:
            raise LimitError(f"a format string asks for more than {WIDEST} columns")
        most = max(weights, default=0) * len(fields) if isinstance(given, dict) else sum(weights)
        self.budget.admit(len(text) + sum(sizes) + most)

    def _limited(self, name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that is charged for its result and asked about its size before."""

        @functools.wraps(run)
        def limited(*args: Any, **kwargs: Any) -> Any:
            front = [a for a in args[:1] if isinstance(a, (Context, EvalContext, Environment))]
            given = self._admit(name, args[len(front) :], kwargs)
            return self.budget.weighed(run(*front, *given, **kwargs))

        return limited

    def _admit(
        self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Any, ...]:
        """Refuse calls whose result would be out of proportion; gives the arguments back."""
        budget, given = self.budget, [*args[1:], *kwargs.values()]
        value = args[0] if args else ""
        if name in ABSENT_METHODS:
            raise LimitError(f"{name} is not available in chat templates")
        if name in WIDTHS and any(_width(item) > WIDEST for item in given):
            raise LimitError(f"{name} is asked for more than {WIDEST} columns or items")
        if name == "join":
            value = list(value)
            attribute = kwargs.get("attribute", args[2] if len(args) > 2 else None)
            texts = value
            if attribute is not None:
                budget.tick(len(value))
                texts = [make_attrgetter(self, attribute)(item) for item in value]
            budget.admit(budget.measure(texts)[0] + max(map(_width, given), default=0) * len(value))
        elif name == "replace" and len(given) > 1:
            text, old, new = str(value), str(given[0]), str(given[1])
            budget.admit(len(text) + text.count(old) * len(new))
        elif name == "format":  # the filter
            self._admit_percent(str(value), dict(kwargs) if kwargs else tuple(args[1:]))
        elif name == "sum" and any(isinstance(item, (list, tuple, dict)) for item in given):
            raise LimitError("sum of lists is not available in chat templates")
        elif name == "indent":
            widest = max(map(_width, given), default=4)
            budget.admit(len(str(value)) + (1 + str(value).count("\n")) * widest)
        elif name == "tojson":
            weight, depth = budget.measure(value)
            budget.admit(weight * (1 + depth * max(map(_width, given), default=0)))
        return (value, *args[1:]) if args else args


def _width(value: Any) -> int:
    """Columns that an argument asks for: a number's value, a text's length."""
    if isinstance(value, str):
        return len(value)
    return abs(value) if isinstance(value, int) else 0


def _columns(digits: str) -> int:
    """A number that a format string writes, or one past every limit."""
    digits = digits.lstrip("0")
    return int(digits or "0") if len(digits) < 10 else 1 << 30


def _bits(count: int) -> None:
    if count > INT_BITS:
        raise LimitError(f"a number of {count} bits, the limit is {INT_BITS}")


class _Charging(NodeTransformer):
    """Sends what can grow, and what takes time in proportion to it, past the budget."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("joined", node.nodes, node.lineno)

    def _weigh(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        return _call("weighed", [node], node.lineno)

    visit_List = visit_Dict = visit_Compare = visit_Test = _weigh

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _call("weighed", [node], node.lineno) if node.ctx == "load" else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        sliced = isinstance(node.arg, nodes.Slice) and node.ctx == "load"
        return _call("weighed", [node], node.lineno) if sliced else node


def _call(name: str, args: list[Any], line: int) -> nodes.Call:
    """A call of one of the environment's own methods, which no template can shadow."""
    target = nodes.EnvironmentAttribute(name)
    call = nodes.Call(target, args, [], None, None)
    call.set_lineno(line)
    return call

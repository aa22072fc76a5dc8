"""What a PromQL expression asks of the metrics it names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from cwbass.telemetry.metrics import OPEN, Definition

parser = pytest.importorskip("promql_parser", reason="pip install promql-parser (it is one of the dev extra)")

RATES = {"rate", "irate", "increase"}  # of counters only
ADDED = {"job", "instance", "pipeline", "stage", "le"}  # labels that scraping, pushing and histograms add
SUFFIXES = ("_bucket", "_sum", "_count")


@dataclass(frozen=True)
class Use:
    """A metric where an expression names it."""

    name: str
    matchers: tuple[tuple[str, str, str], ...]  # label, operator, value
    function: str | None  # that takes its range, or "unless" between two values; None for the value now
    labels: frozenset[str]  # that aggregations and matchings around it speak of


def uses(expression: str) -> list[Use]:
    """Every selector of an expression."""
    return list(_walk(parser.parse(expression), None, frozenset()))


def problems(expression: str, definitions: dict[str, Definition]) -> list[str]:
    """What is wrong with an expression, given the metrics that exist."""
    return [problem for use in uses(expression) for problem in _problems(use, definitions)]


def _problems(use: Use, definitions: dict[str, Definition]) -> Iterator[str]:
    base = next((use.name.removesuffix(end) for end in SUFFIXES if use.name.removesuffix(end) in definitions), use.name)
    found = definitions.get(use.name, definitions.get(base))
    if found is None:
        yield f"{use.name} does not exist"
        return
    if (found.kind == "histogram") != (use.name != found.name):
        yield f"{use.name} is no series of a {found.kind}"
    cumulative = found.kind in ("counter", "histogram")
    if use.function in RATES and not cumulative:
        yield f"{use.function} of {use.name}, which is a {found.kind}"
    if cumulative and use.function not in {*RATES, "max_over_time", "unless"} and not found.outcome:
        yield f"{use.name} is a {found.kind}: only its rate or increase means something"
    for label in sorted((use.labels | {label for label, _, _ in use.matchers}) - ADDED - set(found.labels)):
        yield f"{use.name} has no label {label}"
    for label, operator, value in use.matchers:
        known = found.labels.get(label, OPEN)
        values = value.split("|") if operator == "=~" else [value]
        for each in values if known else []:
            if each not in known:
                yield f"{use.name} never has {label}={each!r}"


def _walk(node: Any, function: str | None, labels: frozenset[str]) -> Iterator[Use]:
    kind = type(node).__name__
    if kind == "VectorSelector":
        matchers = tuple((each.name, str(each.op).replace("MatchOp.", ""), each.value) for each in node.matchers.matchers)
        yield Use(node.name, tuple((name, _OPERATORS[op], value) for name, op, value in matchers), function, labels)
    elif kind == "MatrixSelector":
        yield from _walk(node.vector_selector, function, labels)
    elif kind == "Call":
        for argument in node.args:
            yield from _walk(argument, node.func.name, labels)
    elif kind == "AggregateExpr":
        spoken = frozenset(node.modifier.labels) if node.modifier else frozenset()
        yield from _walk(node.expr, function, labels | spoken)
    elif kind == "BinaryExpr":
        matching = node.modifier.matching if node.modifier else None
        spoken = frozenset(matching.labels) if matching else frozenset()
        inside = "unless" if str(node.op).endswith("unless") else function
        for side in (node.lhs, node.rhs):
            yield from _walk(side, inside, labels | spoken)
    elif kind in ("ParenExpr", "SubqueryExpr", "UnaryExpr"):
        yield from _walk(node.expr, function, labels)


_OPERATORS = {"Equal": "=", "NotEqual": "!=", "Re": "=~", "NotRe": "!~"}

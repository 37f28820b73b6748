"""The parameters of a request, each taken out with its type checked."""

from __future__ import annotations

from typing import Any, Dict

from xenoshell.wire.causes import Failure

Params = Dict[str, Any]


def text(params: Params, name: str) -> str:
    """A text parameter. Raises `Failure` (bad-request) when there is none."""
    value = params.get(name)
    if not isinstance(value, str):
        raise Failure("bad-request", "%s: expected a text, found %s" % (name, type(value).__name__))
    return value


def integer(params: Params, name: str) -> int:
    """A whole number that is not negative. Raises `Failure` (bad-request) when there is none."""
    value = params.get(name)
    if type(value) is not int or not 0 <= value < 1 << 53:
        raise Failure("bad-request", "%s: expected a whole number, found %r" % (name, str(value)[:40]))
    return value


def number(params: Params, name: str) -> float:
    """A number that is not negative. Raises `Failure` (bad-request) when there is none."""
    value: Any = params.get(name)
    if type(value) not in (int, float) or not 0 <= value < 1e12:
        raise Failure("bad-request", "%s: expected a number, found %r" % (name, str(value)[:40]))
    return float(value)


def flag(params: Params, name: str) -> bool:
    """True or false. Raises `Failure` (bad-request) when there is none."""
    value = params.get(name)
    if type(value) is not bool:
        raise Failure("bad-request", "%s: expected true or false, found %r" % (name, str(value)[:40]))
    return value

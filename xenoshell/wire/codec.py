"""JSON <-> frozen dataclasses, strictly: what a peer says is hostile until it is a value of the declared type."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any, Dict, Tuple, Type, TypeVar, Union, get_type_hints

T = TypeVar("T")
_HINTS: Dict[type, Dict[str, Any]] = {}
#: Looked at first, since a recipe has a hundred thousand of them.
_SCALARS = frozenset((int, str, bool, float))
#: Whole numbers lie within this range: every one of them can become a float and an argument of the system.
_MOST = 1 << 63


class CodecError(ValueError):
    """A JSON document is not the value it should be; the message names the place."""


def encode(value: Any) -> Any:
    """The JSON form (dicts, lists, scalars) of a dataclass value, or of plain JSON holding such values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [v if type(v) in _SCALARS else encode(v) for v in value]
    if isinstance(value, dict):
        return {k: encode(v) for k, v in value.items()}
    return value


def dumps(value: Any) -> bytes:
    """Canonical JSON: sorted keys, no spaces, UTF-8. Equal values give equal bytes.

    Halves of surrogate pairs (of file names that are no UTF-8) become "?": an answer must not fail for its wording.
    """
    text = json.dumps(encode(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "replace")


def loads(data: bytes) -> Dict[str, Any]:
    """Parse a JSON object in UTF-8. Raises `CodecError` for anything else: NaN, infinities and numbers that are too
    large for a float, and halves of surrogate pairs, which nobody could print or write down.
    """
    try:
        text = data.decode("utf-8")
        value = json.loads(text, parse_constant=_reject, parse_float=_finite)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise CodecError("not JSON: %s" % error) from None
    if not isinstance(value, dict):
        raise CodecError("expected a JSON object, found %s" % type(value).__name__)
    return value


def _reject(word: str) -> Any:
    raise ValueError(word + " is not allowed")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number is out of range")
    return number


def decode(cls: Type[T], value: Any, where: str = "") -> T:
    """Make a ``cls`` (a dataclass) of JSON ``value``. Unknown keys are ignored (a newer peer may send more),
    missing ones take their default. Raises `CodecError` naming the place for a missing key or a wrong type."""
    where = where or cls.__name__
    if not isinstance(value, dict):
        raise CodecError("%s: expected an object, found %s" % (where, type(value).__name__))
    hints = _HINTS.get(cls)
    if hints is None:
        hints = _HINTS[cls] = get_type_hints(cls)
    given = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if field.name in value:
            given[field.name] = _decode(hints[field.name], value[field.name], where + "." + field.name)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise CodecError("%s: missing" % (where + "." + field.name))
    try:
        return cls(**given)
    except ValueError as error:
        raise CodecError("%s: %s" % (where, error)) from None


def _decode(hint: Any, value: Any, where: str) -> Any:
    if hint is Any:
        return value
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return decode(hint, value, where)
    origin = getattr(hint, "__origin__", None)
    arguments: Tuple[Any, ...] = getattr(hint, "__args__", ())
    if origin is Union:  # only Optional[X] is used
        return None if value is None else _decode(arguments[0], value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise CodecError("%s: expected a list, found %s" % (where, type(value).__name__))
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            if arguments[0] in _SCALARS and all(type(v) is arguments[0] for v in value):
                return tuple(value)
            return tuple(_decode(arguments[0], v, "%s[%d]" % (where, i)) for i, v in enumerate(value))
        if len(value) != len(arguments):
            raise CodecError("%s: expected %d items, found %d" % (where, len(arguments), len(value)))
        return tuple(
            v if type(v) is a and a in _SCALARS else _decode(a, v, "%s[%d]" % (where, i))
            for i, (a, v) in enumerate(zip(arguments, value))
        )
    if origin is dict:
        if not isinstance(value, dict):
            raise CodecError("%s: expected an object, found %s" % (where, type(value).__name__))
        return {k: _decode(arguments[1], v, where + "." + k) for k, v in value.items()}
    if type(value) is int and not -_MOST <= value < _MOST:
        raise CodecError("%s: the number is out of range" % where)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise CodecError("%s: expected %s, found %s" % (where, getattr(hint, "__name__", hint), type(value).__name__))
    return value

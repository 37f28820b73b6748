"""The kinds of values that people write in TOML files: names, sizes, durations, money, `where`, ports.

Each is an annotated type: it reads what a person writes, holds a plain Python value, writes itself back
(`model_dump(mode="json")`), and describes itself to editors (JSON Schema). A size or duration that comes from a file
must carry a unit; Python code passes bytes and seconds.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from ipaddress import AddressValueError, IPv4Address
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
)

from xenoshell import units
from xenoshell.fleet.where import Where, WhereErrors, parse
from xenoshell.problems import FROM_FILE, Problems, refuse

NAME_PATTERN = r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$"
NAME_ALLOWED = "lower-case letters, digits and hyphens inside, 40 characters at most, such as web or edge-web"


class Model(BaseModel):
    """What every model of a file has in common: frozen, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, arbitrary_types_allowed=True)


def _from_file(info: ValidationInfo) -> bool:
    return isinstance(info.context, dict) and bool(info.context.get(FROM_FILE))


def _one_line(value: str) -> str:
    if any(ord(c) < 32 or ord(c) == 127 for c in value):
        raise refuse("it has control characters or several lines", allowed="one line of text")
    return value


# ---------------------------------------------------------------- texts


def _name(value: Any) -> str:
    if not isinstance(value, str):
        raise refuse("a name is text", allowed=NAME_ALLOWED)
    if not re.fullmatch(NAME_PATTERN.removesuffix("$"), value):
        near = re.sub(r"[^a-z0-9-]+", "-", value.lower()[:40]).strip("-")
        raise refuse("not usable as a name", allowed=NAME_ALLOWED, nearest=near if near != value else "")
    return value


#: Becomes part of ids and directory names on hosts.
Name = Annotated[str, BeforeValidator(_name), WithJsonSchema({"type": "string", "pattern": NAME_PATTERN})]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise refuse("not a text", allowed='text in quotes, such as "text"')
    if "\0" in value or any(0xD800 <= ord(c) <= 0xDFFF for c in value):
        raise refuse("it holds characters that no file can", allowed="text")
    return value


#: Any text.
Text = Annotated[str, BeforeValidator(_text), WithJsonSchema({"type": "string"})]


def _line(value: Any) -> str:
    line = _one_line(_text(value))
    if not line.strip():
        raise refuse("empty", allowed="one line of text, or leave the key out")
    return line


#: One line of text that is not empty.
Line = Annotated[str, BeforeValidator(_line), WithJsonSchema({"type": "string", "minLength": 1})]


def _host_ref(value: Any) -> str:
    name = _text(value)
    if not HOST_NAME.fullmatch(name):
        raise refuse("not the name of a host", allowed=HOST_NAME_ALLOWED)
    return name


HOST_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?", re.ASCII)
HOST_NAME_ALLOWED = "lower-case letters, digits, and inside them . _ and -, 63 characters at most, such as ams-1"
#: The name of a host of the inventory.
HostName = Annotated[
    str, BeforeValidator(_host_ref), WithJsonSchema({"type": "string", "pattern": rf"^{HOST_NAME.pattern}$"})
]


def _address(value: str) -> str:
    try:
        return str(IPv4Address(value))
    except AddressValueError as error:
        raise refuse(
            "not an IPv4 address", allowed="an IPv4 address of the host: 127.0.0.1, 0.0.0.0 for all, or another"
        ) from error


#: An IPv4 address of a host on which forwarded ports listen.
BindAddress = Annotated[Line, AfterValidator(_address)]


# ---------------------------------------------------------------- numbers


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise refuse("not a whole number", allowed="a whole number, without quotes")
    return value


#: A whole number; no text, no float, no boolean.
Whole = Annotated[int, BeforeValidator(_whole)]

#: A TCP or UDP port.
Port = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=65535)]


def _size(value: Any, info: ValidationInfo) -> int:
    if isinstance(value, str):
        try:
            return units.parse_size(value)
        except ValueError as error:
            raise refuse(str(error), allowed=units.SIZE_ALLOWED) from error
    if isinstance(value, int) and not isinstance(value, bool) and not _from_file(info) and 0 <= value <= units.MAX_SIZE:
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        raise refuse(
            "a number without a unit",
            allowed=units.SIZE_ALLOWED,
            remedy=f'write "{value}MiB" or "{value}GiB"' if 0 < value < 10**9 else "",
        )
    raise refuse("not a size", allowed=units.SIZE_ALLOWED)


#: Bytes; written with a unit.
Size = Annotated[
    int,
    BeforeValidator(_size),
    PlainSerializer(units.format_size, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": units.SIZE_PATTERN, "examples": ["512MiB", "2GiB"]}),
]


def _duration(value: Any, info: ValidationInfo) -> float:
    if isinstance(value, str):
        try:
            return units.parse_duration(value)
        except ValueError as error:
            raise refuse(str(error), allowed=units.DURATION_ALLOWED) from error
    if isinstance(value, int | float) and not isinstance(value, bool) and not _from_file(info):
        if 0 <= value <= units.MAX_DURATION_S and round(value * 1000) / 1000 == value:
            return float(value)
        raise refuse("out of range or finer than a millisecond", allowed=units.DURATION_ALLOWED)
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        raise refuse(
            "a number without a unit",
            allowed=units.DURATION_ALLOWED,
            remedy=f'write "{value}s"' if 0 < value < 10**9 else "",
        )
    raise refuse("not a duration", allowed=units.DURATION_ALLOWED)


#: Seconds; written with units.
Duration = Annotated[
    float,
    BeforeValidator(_duration),
    PlainSerializer(units.format_duration, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": units.DURATION_PATTERN, "examples": ["90s", "24h", "7d"]}),
]

MONEY_ALLOWED = "a number that is not negative, with at most 12 digits before and after the point, such as 0.05"


def _money(value: Any) -> Decimal:
    if isinstance(value, bool):
        raise refuse("not a number", allowed=MONEY_ALLOWED)
    if isinstance(value, float):
        value = repr(value)
    if isinstance(value, str | int) and len(str(value)) <= 40:
        try:
            value = Decimal(value)
        except InvalidOperation as error:
            raise refuse("not a number", allowed=MONEY_ALLOWED) from error
    if not isinstance(value, Decimal) or not value.is_finite():
        raise refuse("not a number", allowed=MONEY_ALLOWED)
    if value < 0 or value.adjusted() > 12 or (value and value.normalize().as_tuple().exponent < -12):  # type: ignore[operator]
        raise refuse("out of range", allowed=MONEY_ALLOWED)
    return value.copy_abs()


#: An amount of money (in a currency that is said elsewhere), exact.
Money = Annotated[Decimal, BeforeValidator(_money), WithJsonSchema({"type": ["number", "string"], "minimum": 0})]


def _currency(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Z]{3}", value):
        upper = value.upper() if isinstance(value, str) else ""
        raise refuse(
            "not a currency", allowed='three capital letters (ISO 4217), such as "EUR"',
            nearest=upper if re.fullmatch(r"[A-Z]{3}", upper) else "",
        )  # fmt: skip
    return value


Currency = Annotated[str, BeforeValidator(_currency), WithJsonSchema({"type": "string", "pattern": "^[A-Z]{3}$"})]


def _coordinate(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise refuse("not a number", allowed="degrees, such as 52.37")
    # Out of range anyway, and too large an integer is no float.
    return 1e3 if isinstance(value, int) and abs(value) > 1000 else float(value)


Latitude = Annotated[float, BeforeValidator(_coordinate), Field(ge=-90, le=90, allow_inf_nan=False)]
Longitude = Annotated[float, BeforeValidator(_coordinate), Field(ge=-180, le=180, allow_inf_nan=False)]


# ---------------------------------------------------------------- where


def _where(value: Any) -> Where:
    if isinstance(value, Where):
        return value
    if not isinstance(value, str):
        raise refuse("not a text", allowed='conditions in quotes, such as "region:eu rtt<80ms"')
    try:
        return parse(value)
    except WhereErrors as errors:
        problems = Problems("Where")
        for error in errors.errors:
            problems.add(
                (), error.found, error.message, allowed=error.allowed, nearest=error.nearest, column=error.column
            )
        problems.check()
        raise


WhereField = Annotated[
    Where,
    PlainValidator(_where),
    PlainSerializer(str),
    WithJsonSchema({"type": "string", "examples": ["region:eu rtt<80ms"]}),
]

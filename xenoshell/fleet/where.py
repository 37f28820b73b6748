"""`where`: which hosts will do. One line of text is parsed here, and only here, into predicates."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from types import MappingProxyType
from typing import Protocol

from xenoshell.units import DURATION_ALLOWED, SIZE_ALLOWED, parse_duration, parse_size

#: The grammar, for `--help`, the documentation and the app.
HELP = """\
`where` is a list of conditions separated by spaces; a host must meet all of them.

  region:eu             the place or a label equals a value (upper and lower case are the same)
  region:eu,us          ... or one of several values
  city:"New York"       ... quotes for values with spaces
  -country:de  !zone:b  ... does not equal any of them
  rtt<80ms              a measure: < <= > >= = and a value with its unit
  ams                   a word: part of the host's name; with * or ? the whole name (ams-*)
  -ams-1                ... not that one

Places:    host region country city accel arch; every other word before a colon is a label of hosts.toml
Measures:  rtt (80ms)  memory disk (2GiB)  vcpus (2)  price (0.05/h, of the VM in question on that host)

A measure that is not known yet (rtt before the first connection) refuses a host when placing for real; a quote lets it
pass and lists it as unverified."""

#: Keys compared for equality that are not labels. `name`, `cpus`: other words for the same.
PLACES = ("host", "region", "country", "city", "accel", "arch")
MEASURES = ("rtt", "memory", "disk", "vcpus", "price")
SYNONYMS: Mapping[str, str] = MappingProxyType({"name": "host", "cpus": "vcpus"})

_OPERATORS = ("<=", ">=", "<", ">", "=")
_MAX_LENGTH = 4096
_TOKEN = re.compile(
    r"""\s*(?P<not>[-!])?
        (?P<word>"[^"]*"|'[^']*'|[A-Za-z0-9_.*?\[\]-]+)
        (?:\s*(?P<op><=|>=|==|<|>|=)\s*(?P<value>[^\s<>=:]*)
          |(?P<colon>:)(?P<values>(?:"[^"]*"|'[^']*'|[^\s"'])*)
        )?
        (?=\s|\Z)""",
    re.VERBOSE | re.ASCII,
)
_VALUE = re.compile(r""""([^"]*)"|'([^']*)'|([^,"']+)""")


@dataclass(frozen=True)
class HostView:
    """What is declared and known of one host: what predicates look at. ``None``: not known (yet)."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    region: str | None = None
    country: str | None = None
    city: str | None = None
    rtt_ms: float | None = None
    vcpus: int | None = None
    memory: int | None = None  # bytes
    disk: int | None = None  # bytes
    price_per_hour: Decimal | None = None  # of the VM at hand
    accel: str | None = None  # kvm | tcg
    arch: str | None = None


@dataclass(frozen=True)
class WhereError:
    """One thing wrong with a `where`. ``column`` is an offset into the text, from 0."""

    message: str
    column: int
    found: str
    allowed: str = ""
    nearest: str = ""


class WhereErrors(ValueError):
    """Everything that is wrong with a `where` text."""

    def __init__(self, text: str, errors: tuple[WhereError, ...]) -> None:
        super().__init__("; ".join(f"column {e.column + 1}: {e.message}" for e in errors))
        self.text = text
        self.errors = errors


class Term(Protocol):
    """One condition."""

    @property
    def text(self) -> str: ...
    @property
    def column(self) -> int: ...
    def known(self, host: HostView) -> bool:
        """Whether enough is known of the host to decide."""

    def refusal(self, host: HostView) -> str | None:
        """Why the host does not meet the condition, or None if it does. Only asked when `known`."""


@dataclass(frozen=True)
class Equals:
    """``key:value,value`` and its negation."""

    key: str
    values: tuple[str, ...]
    negated: bool
    text: str
    column: int

    def _fact(self, host: HostView) -> str | None:
        if self.key == "host":
            return host.name
        if self.key in PLACES:
            value: str | None = getattr(host, self.key)
            return value
        return host.labels.get(self.key)

    def known(self, host: HostView) -> bool:
        # A label or a place that an owner did not write is not there; only probed facts can still come.
        return self.key not in ("accel", "arch") or self._fact(host) is not None

    def refusal(self, host: HostView) -> str | None:
        fact = self._fact(host)
        equal = fact is not None and fact.casefold() in {value.casefold() for value in self.values}
        if equal != self.negated:
            return None
        if fact is None:
            return f"it has no {self.key}" if self.key in PLACES else f"it has no label {self.key}"
        return fact


@dataclass(frozen=True)
class Compares:
    """``measure < value``. ``value`` is milliseconds (rtt), bytes (memory, disk), a count, or money an hour (price)."""

    key: str
    operator: str
    value: Decimal
    text: str
    column: int

    def _fact(self, host: HostView) -> Decimal | None:
        fact = {
            "rtt": host.rtt_ms,
            "memory": host.memory,
            "disk": host.disk,
            "vcpus": host.vcpus,
            "price": host.price_per_hour,
        }[self.key]
        return None if fact is None else Decimal(fact)

    def known(self, host: HostView) -> bool:
        return self._fact(host) is not None

    def refusal(self, host: HostView) -> str | None:
        fact = self._fact(host)
        if fact is None:
            return f"{self.key} is not known yet"
        met = {
            "<": fact < self.value,
            "<=": fact <= self.value,
            ">": fact > self.value,
            ">=": fact >= self.value,
            "=": fact == self.value,
        }[self.operator]
        return None if met else _show(self.key, fact)


@dataclass(frozen=True)
class NameMatches:
    """A bare word: part of the host's name, or, with ``*`` or ``?``, a pattern for all of it."""

    pattern: str
    negated: bool
    text: str
    column: int

    def known(self, host: HostView) -> bool:
        return True

    def refusal(self, host: HostView) -> str | None:
        name, pattern = host.name.casefold(), self.pattern.casefold()
        matches = fnmatch.fnmatchcase(name, pattern) if any(c in pattern for c in "*?[") else pattern in name
        return None if matches != self.negated else f"its name is {host.name}"


@dataclass(frozen=True)
class Where:
    """Conditions that a host must meet, all of them; none: any host will do. Equal when the text is."""

    text: str = ""
    terms: tuple[Equals | Compares | NameMatches, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        return self.text

    def refusals(self, host: HostView, *, strict: bool = True) -> tuple[str, ...]:
        """Which conditions refuse the host, and why: ``"rtt<80ms: 143 ms"``. Empty: it will do.

        What is not known yet refuses when ``strict``, and passes otherwise (see `unverified`).
        """
        out = []
        for term in self.terms:
            if not term.known(host):
                if strict:
                    out.append(f"{term.text}: {getattr(term, 'key', 'it')} is not known yet")
                continue
            reason = term.refusal(host)
            if reason is not None:
                out.append(f"{term.text}: {reason}")
        return tuple(out)

    def unverified(self, host: HostView) -> tuple[str, ...]:
        """The conditions that cannot be decided yet for this host, as written."""
        return tuple(term.text for term in self.terms if not term.known(host))

    def label_keys(self) -> tuple[str, ...]:
        """The labels it asks for."""
        return tuple(dict.fromkeys(t.key for t in self.terms if isinstance(t, Equals) and t.key not in PLACES))


@dataclass(frozen=True)
class UnknownKey:
    """A label that no host has, and the nearest word that exists ("" if none is near)."""

    key: str
    column: int
    nearest: str


def unknown_keys(where: Where, known_labels: Iterable[str]) -> tuple[UnknownKey, ...]:
    """The labels of ``where`` that no host has: not errors, but most likely misspelt."""
    known = set(known_labels)
    return tuple(
        UnknownKey(term.key, term.column, _nearest(term.key, [*sorted(known), *PLACES]))
        for term in where.terms
        if isinstance(term, Equals) and term.key not in PLACES and term.key not in known
    )


def parse(text: str) -> Where:
    """Predicates of a `where` text; see `HELP` for the grammar. Raises `WhereErrors` with every error in it."""
    if len(text) > _MAX_LENGTH:
        raise WhereErrors(text, (WhereError("too long", 0, f"{len(text)} characters", f"at most {_MAX_LENGTH}"),))
    terms: list[Equals | Compares | NameMatches] = []
    errors: list[WhereError] = []
    at = 0
    while text[at:].strip():
        found = _TOKEN.match(text, at)
        if found is None:
            at += len(text[at:]) - len(text[at:].lstrip())
            word = text[at:].split(maxsplit=1)[0]
            errors.append(
                WhereError(
                    "this is no condition", at, word[:80], "key:value, measure<value or a part of the host's name"
                )
            )
            at += len(word)
            continue
        at = found.end()
        term = _term(found)
        if isinstance(term, WhereError):
            errors.append(term)
        else:
            terms.append(term)
    if errors:
        raise WhereErrors(text, tuple(errors))
    return Where(text, tuple(terms))


def _term(found: re.Match[str]) -> Equals | Compares | NameMatches | WhereError:
    start = found.start("not") if found["not"] else found.start("word")
    text = " ".join(found.string[start : found.end()].split())
    negated = found["not"] is not None
    word = found["word"].strip("\"'")
    key = SYNONYMS.get(word.lower(), word.lower())
    if found["op"]:
        if negated:
            return WhereError(
                "a comparison cannot be negated", start, text, "turn the operator round: < for >=, > for <="
            )
        if key not in MEASURES:
            return WhereError(
                f"{key} cannot be compared",
                start,
                text,
                f"{', '.join(MEASURES)}; for others {key}:value",
                _nearest(key, MEASURES),
            )
        operator = "=" if found["op"] == "==" else found["op"]
        try:
            return Compares(key, operator, _measure(key, found["value"]), "".join(text.split()), start)
        except ValueError as error:
            return WhereError(f"{key}: {error}", found.start("value"), found["value"], _ALLOWED[key])
    if found["colon"]:
        if key in MEASURES:
            return WhereError(f"{key} is a measure", start, text, f"{key}<value, with one of {' '.join(_OPERATORS)}")
        values = tuple(next(v for v in m.groups() if v is not None) for m in _VALUE.finditer(found["values"]))
        if not values or any(not v for v in values) or found["values"].startswith(",") or found["values"].endswith(","):
            return WhereError(
                f"{key}: a value is missing", found.start("values"), text, f"{key}:value or {key}:one,other"
            )
        return Equals(key, values, negated, text, start)
    if key in MEASURES:
        return WhereError(
            f"{key} is a measure and needs a comparison",
            start,
            text,
            f"{key}<value, with one of {' '.join(_OPERATORS)}",
        )
    if not word:
        return WhereError("an empty word", start, text, "a part of the host's name")
    return NameMatches(word, negated, text, start)


_ALLOWED: Mapping[str, str] = MappingProxyType(
    {
        "rtt": DURATION_ALLOWED,
        "memory": SIZE_ALLOWED,
        "disk": SIZE_ALLOWED,
        "vcpus": "a whole number",
        "price": "money an hour, such as 0.05/h",
    }
)


def _measure(key: str, value: str) -> Decimal:
    if not value:
        raise ValueError("a value is missing")
    if key == "rtt":
        return Decimal(str(parse_duration(value))) * 1000
    if key in ("memory", "disk"):
        return Decimal(parse_size(value))
    if key == "price":
        value = value.removesuffix("/h")
    elif not (value.isascii() and value.isdigit()):
        raise ValueError("not a whole number")
    if not re.fullmatch(r"[0-9]{1,20}(\.[0-9]{1,20})?", value, re.ASCII):
        raise ValueError("not a number")
    try:
        return Decimal(value)
    except InvalidOperation as error:  # pragma: no cover - the pattern admits numbers only
        raise ValueError("not a number") from error


def _show(key: str, fact: Decimal) -> str:
    """A measured value, for a refusal."""
    if key == "rtt":
        return f"{fact:.0f} ms" if fact >= 10 else f"{fact:.1f} ms"
    if key in ("memory", "disk"):
        mib = int(fact) >> 20
        return f"{Decimal(mib) / 1024:.1f} GiB" if mib >= 1024 else f"{mib} MiB"
    if key == "price":
        return f"{fact.normalize():f}/h"
    return f"{fact:f}"


def _nearest(word: str, known: Iterable[str]) -> str:
    return next(iter(difflib.get_close_matches(word, list(known), 1, 0.6)), "")

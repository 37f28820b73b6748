"""Amounts of money: exact, each in its currency, never added across currencies."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

ZERO = Decimal(0)
GIB = 1 << 30


@dataclass(frozen=True)
class Amounts:
    """A sum for each currency, as sorted (currency, amount) pairs; currencies without an amount are left out."""

    each: tuple[tuple[str, Decimal], ...] = ()

    @staticmethod
    def of(currency: str, amount: Decimal) -> Amounts:
        return Amounts(((currency, amount),)) if amount else Amounts()

    @staticmethod
    def total(parts: Iterable[Amounts]) -> Amounts:
        sums: dict[str, Decimal] = {}
        for part in parts:
            for currency, amount in part.each:
                sums[currency] = sums.get(currency, ZERO) + amount
        return Amounts(tuple(sorted((c, a) for c, a in sums.items() if a)))

    def __add__(self, other: Amounts) -> Amounts:
        return Amounts.total((self, other))

    def times(self, factor: Decimal) -> Amounts:
        return Amounts(tuple((c, a * factor) for c, a in self.each if a * factor))

    def get(self, currency: str) -> Decimal:
        return dict(self.each).get(currency, ZERO)

    @property
    def currencies(self) -> tuple[str, ...]:
        return tuple(c for c, _ in self.each)

    def to_json(self) -> dict[str, str]:
        """Exact decimal strings: a JSON number would be read as a binary float."""
        return {c: plain(a) for c, a in self.each}

    def __str__(self) -> str:
        return " + ".join(show(a, c) for c, a in self.each) or "free"


def plain(amount: Decimal) -> str:
    """The exact amount in digits, without exponent and without trailing zeros."""
    text = format(amount, "f")
    return (text.rstrip("0").rstrip(".") or "0") if "." in text else text


def show(amount: Decimal, currency: str) -> str:
    """For people: two decimals, or below 1 as many as show three significant digits (at most six).

    Rounded up, so that nobody pays more than was shown.
    """
    digits = 2 if abs(amount) >= 1 or not amount else min(6, max(2, 2 - amount.adjusted()))
    shown = amount.quantize(Decimal(1).scaleb(-digits), rounding="ROUND_CEILING")
    whole, _, decimals = str(shown).partition(".")
    return f"{whole}.{decimals.rstrip('0').ljust(2, '0')} {currency}".rstrip()


def gib(size: int) -> Decimal:
    """Bytes as an exact number of GiB."""
    return Decimal(size) / GIB

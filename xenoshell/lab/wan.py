"""Link profiles: what ``--wan`` means."""

from __future__ import annotations

import re
from dataclasses import dataclass

from xenoshell.errors import BadInput
from xenoshell.lab.places import LabPlace


@dataclass(frozen=True)
class Profile:
    """A link as its user sees it: round trip (milliseconds) and rates (bits per second, 0: as fast as it goes).

    ``up`` is from the user towards the host, ``down`` from the host to the user.
    """

    rtt_ms: float
    up_bps: float = 0
    down_bps: float = 0

    def __str__(self) -> str:
        parts = [f"rtt={self.rtt_ms:.15g}ms"]
        parts += [f"{key}={_rate_text(rate)}" for key, rate in (("up", self.up_bps), ("down", self.down_bps)) if rate]
        return ",".join(parts)


#: Named profiles. ``world`` takes each host's round trip from its place.
NAMED = {
    "lan": Profile(0.5, 1e9, 1e9),
    "europe": Profile(30, 200e6, 200e6),
    "world": Profile(-1, 100e6, 100e6),
    "dsl": Profile(40, 10e6, 50e6),
    "satellite": Profile(600, 5e6, 50e6),
}
#: Takes the relays away.
NONE = "none"

_RTT = re.compile(r"(\d+(?:\.\d+)?)(ms|s)\Z")
_RATE = re.compile(r"(\d+(?:\.\d+)?)(k|m|g)bit\Z")
_FACTOR = {"k": 1e3, "m": 1e6, "g": 1e9}


def profile_of(text: str, place: LabPlace) -> Profile:
    """The link to a host in ``place`` under ``--wan text``: a name of `NAMED`, or parts: ``rtt=150ms,up=20mbit``.

    Raises `BadInput` that says what was found and what is allowed.
    """
    named = NAMED.get(text)
    if named is not None:
        return named if named.rtt_ms >= 0 else Profile(place.rtt_ms, named.up_bps, named.down_bps)
    given: dict[str, float] = {}
    for part in text.split(","):
        key, _, value = part.strip().partition("=")
        pattern = _RTT if key == "rtt" else _RATE
        found = pattern.match(value)
        if key not in ("rtt", "up", "down") or found is None:
            raise BadInput(f"--wan: found {part.strip()!r} in {text!r}; {_allowed()}")
        if key in given:
            raise BadInput(f"--wan: {key} is given twice in {text!r}")
        number = float(found[1])
        given[key] = number * (1000 if found[2] == "s" else 1) if key == "rtt" else number * _FACTOR[found[2]]
        if (key == "rtt" and given[key] > 60_000) or (key != "rtt" and given[key] < 8000):
            raise BadInput(
                f"--wan: {part.strip()!r} is out of range; a round trip is at most 60s, a rate at least 8kbit"
            )
    return Profile(given.get("rtt", 0.0), given.get("up", 0.0), given.get("down", 0.0))


def _allowed() -> str:
    return f"allowed: {', '.join(NAMED)}, {NONE}, or parts such as rtt=150ms,up=20mbit,down=100mbit"


def _rate_text(bps: float) -> str:
    for letter in "gmk":
        if bps % _FACTOR[letter] == 0:
            return f"{bps / _FACTOR[letter]:.15g}{letter}bit"
    return f"{bps / 1000:.15g}kbit"

"""Where the lab's XenoServers say they are, and what they charge.

Coordinates are the cities'. Prices are invented, in the proportions that hosting companies ask: a vCPU costs about
twice a GiB of memory, and a far or scarce place up to three times a near one. Round trips are those commonly seen from
Cambridge, the platform's place of birth.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

CURRENCY = "EUR"


@dataclass(frozen=True)
class LabPlace:
    """A city a lab host pretends to be in.

    ``vcpu``, ``memory`` and ``disk`` are prices for a vCPU, a GiB and a GiB of disk an hour, ``transfer`` for a GiB
    sent to it; ``rtt_ms`` is the round trip that the profile ``world`` gives it.
    """

    code: str
    city: str
    country: str
    region: str
    lat: float
    lon: float
    rtt_ms: float
    vcpu: Decimal
    memory: Decimal
    disk: Decimal
    transfer: Decimal


def _place(  # noqa: PLR0917 - the rows of a table
    code: str, city: str, country: str, region: str, at: tuple[float, float], rtt_ms: float, level: str, transfer: str
) -> LabPlace:
    price = Decimal(level)
    cent = Decimal("0.00001")
    return LabPlace(
        code,
        city,
        country,
        region,
        *at,
        rtt_ms,
        vcpu=(price * Decimal("0.0080")).quantize(cent),
        memory=(price * Decimal("0.0040")).quantize(cent),
        disk=(price * Decimal("0.0001")).quantize(cent),
        transfer=Decimal(transfer),
    )


#: Neighbours in this list are far apart, so that even a lab of three spans the world.
PLACES = (
    _place("ams", "Amsterdam", "NL", "eu", (52.37, 4.90), 12, "1.00", "0.01"),
    _place("nyc", "New York", "US", "na", (40.71, -74.01), 75, "1.25", "0.02"),
    _place("sin", "Singapore", "SG", "as", (1.35, 103.82), 165, "1.60", "0.08"),
    _place("gru", "São Paulo", "BR", "sa", (-23.55, -46.63), 190, "2.10", "0.12"),
    _place("fra", "Frankfurt", "DE", "eu", (50.11, 8.68), 18, "0.90", "0.01"),
    _place("tyo", "Tokyo", "JP", "as", (35.68, 139.69), 220, "1.70", "0.09"),
    _place("jnb", "Johannesburg", "ZA", "af", (-26.20, 28.05), 170, "2.30", "0.12"),
    _place("sfo", "San Francisco", "US", "na", (37.77, -122.42), 140, "1.40", "0.02"),
    _place("syd", "Sydney", "AU", "oc", (-33.87, 151.21), 260, "1.90", "0.11"),
    _place("lon", "London", "GB", "eu", (51.51, -0.13), 6, "1.15", "0.01"),
    _place("bom", "Mumbai", "IN", "as", (19.08, 72.88), 125, "1.10", "0.09"),
    _place("yyz", "Toronto", "CA", "na", (43.65, -79.38), 90, "1.20", "0.02"),
    _place("hel", "Helsinki", "FI", "eu", (60.17, 24.94), 38, "0.80", "0.01"),
    _place("scl", "Santiago", "CL", "sa", (-33.45, -70.67), 215, "2.00", "0.12"),
    _place("sel", "Seoul", "KR", "as", (37.57, 126.98), 235, "1.65", "0.09"),
    _place("nbo", "Nairobi", "KE", "af", (-1.29, 36.82), 155, "2.40", "0.12"),
    _place("chi", "Chicago", "US", "na", (41.88, -87.63), 100, "1.15", "0.02"),
    _place("mad", "Madrid", "ES", "eu", (40.42, -3.70), 32, "0.95", "0.01"),
    _place("akl", "Auckland", "NZ", "oc", (-36.85, 174.76), 275, "2.05", "0.11"),
    _place("dxb", "Dubai", "AE", "as", (25.20, 55.27), 115, "1.75", "0.10"),
    _place("waw", "Warsaw", "PL", "eu", (52.23, 21.01), 30, "0.85", "0.01"),
    _place("mia", "Miami", "US", "na", (25.76, -80.19), 105, "1.30", "0.02"),
    _place("hkg", "Hong Kong", "HK", "as", (22.32, 114.17), 195, "1.80", "0.09"),
    _place("lis", "Lisbon", "PT", "eu", (38.72, -9.14), 36, "0.90", "0.01"),
)
_BY_CODE = {place.code: place for place in PLACES}


def name_of(index: int) -> str:
    """The name of the lab's host number ``index`` (from 0): ams-1, nyc-1, ..., and ams-2 once all places are used."""
    return f"{PLACES[index % len(PLACES)].code}-{index // len(PLACES) + 1}"


def place_of(name: str) -> LabPlace:
    """The place of a lab host of that name. Raises `KeyError` for a name that `name_of` does not give."""
    return _BY_CODE[name.partition("-")[0]]

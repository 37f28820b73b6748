"""Hypothesis strategies for whole sessions and hosts."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from hypothesis import strategies as st

from xenoshell.fleet.inventory import Declared, Host, Place, PriceList, SshOptions
from xenoshell.fleet.where import parse
from xenoshell.session.model import (
    Budget,
    Customise,
    File,
    ForwardRule,
    Network,
    ReadyRule,
    Resources,
    Session,
    VmGroup,
)

MIB = 1 << 20

names = st.from_regex(r"[a-z]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
#: Any text that a file can hold, braces apart (they may be unknown placeholders).
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0{}"), max_size=60)
lines = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="{}"), min_size=1, max_size=30
).filter(lambda s: bool(s.strip()))
filled = st.one_of(
    texts, st.sampled_from(["{vm} on {host}\n", 'a\n"""\nb\\', "${HOME} {{vm}} {} {a,b}", "x\r\ny", "\n\nz\n"])
)
money = st.decimals(0, 100, places=4) | st.integers(0, 1000).map(Decimal)
durations = st.integers(1000, 10**10).map(lambda ms: ms / 1000)
ports = st.integers(1, 65535)
wheres = st.lists(
    st.sampled_from(
        [
            "region:eu",
            "-country:de,fr",
            'city:"New York"',
            "rtt<80ms",
            "memory>=2GiB",
            "vcpus = 2",
            "price<0.05/h",
            "ams-*",
            "tier:a",
        ]
    ),
    max_size=4,
).map(lambda terms: parse(" ".join(terms)))


def optional(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


budgets = st.builds(
    Budget,
    max_per_hour=optional(money),
    max_total=optional(money),
    currency=optional(st.just("EUR")),
    lease=optional(durations),
)
resources = st.builds(
    Resources,
    vcpus=st.integers(1, 1024),
    memory=st.integers(1, 1 << 20).map(lambda m: m * MIB),
    disk=optional(st.integers(MIB // 512, 1 << 35).map(lambda s: s * 512)),
)


@st.composite
def networks(draw: st.DrawFn) -> Network:
    guests = draw(st.lists(st.tuples(ports, st.sampled_from(["tcp", "udp"])), max_size=4, unique=True))
    hosts = draw(st.lists(ports, min_size=len(guests), max_size=len(guests), unique=True))
    rules = tuple(
        ForwardRule(
            guest=guest,
            host=draw(optional(st.just(host))),
            proto=proto,
            bind=draw(optional(st.sampled_from(["0.0.0.0", "127.0.0.1"]))),
        )
        for (guest, proto), host in zip(guests, hosts, strict=True)
    )
    return Network(mode="user" if rules else draw(st.sampled_from(["user", "bridge"])), forward=rules)


@st.composite
def files(draw: st.DrawFn) -> File:
    inside = draw(st.booleans())
    return File(
        path="/" + draw(names),
        content=draw(filled) if inside else None,
        source=None if inside else draw(lines),
        mode=draw(st.sampled_from(["0644", "0755", "600"])),
        owner=draw(st.sampled_from(["root:root", "www-data", "a:b"])),
    )


customises = st.builds(
    Customise,
    hostname=optional(st.sampled_from(["{vm}", "web.example.org", "{vm}.{host}"])),
    authorized_keys=st.lists(lines, max_size=3).map(tuple),
    run=st.lists(filled, max_size=3).map(tuple),
    file=st.lists(files(), max_size=3, unique_by=lambda f: f.path).map(tuple),
)


@st.composite
def readies(draw: st.DrawFn, bridge: bool) -> ReadyRule:
    when = draw(st.sampled_from(["console", "none"] if bridge else ["console", "tcp", "http", "none"]))
    return ReadyRule(
        when=when,
        port=draw(ports) if when in ("tcp", "http") else None,
        path=draw(st.sampled_from(["/", "/healthz?a=b"])) if when == "http" else "/",
        match=draw(lines) if when == "console" else "login:",
        timeout=draw(durations),
    )


@st.composite
def groups(draw: st.DrawFn, name: str) -> VmGroup:
    kernel = draw(optional(lines))
    hosts = tuple(draw(st.lists(names, max_size=3)))
    network = draw(networks())
    return VmGroup(
        name=name,
        image=draw(st.just("debian-12.1") if kernel is None else optional(st.just("a" * 64))),
        kernel=kernel,
        initrd=draw(optional(lines)),
        cmdline=draw(optional(lines)),
        count=len(hosts) or draw(st.integers(1, 50)),
        hosts=hosts,
        where=draw(wheres),
        spread=None if hosts else draw(optional(st.sampled_from(["region", "country", "city", "host"]))),
        resources=draw(resources),
        network=network,
        customise=draw(customises),
        ready=draw(readies(network.mode == "bridge")),
    )


@st.composite
def sessions(draw: st.DrawFn) -> Session:
    # A letter of its own at the end keeps expanded names apart.
    return Session(
        schema_=1,
        name=draw(names),
        budget=draw(optional(budgets)),
        vm=tuple(draw(groups(f"{draw(names)}-{end}")) for end in "abc"[: draw(st.integers(1, 3))]),
    )


@st.composite
def hosts(draw: st.DrawFn, name: str) -> Host:
    located = draw(st.booleans())
    return Host(
        name=name,
        ssh=draw(st.sampled_from(["alias", "me@host.example", "root@10.0.0.1:2222", "[2001:db8::1]:22", "u@[::1]"])),
        place=Place(
            region=draw(optional(lines)),
            city=draw(optional(lines)),
            lat=draw(st.floats(-90, 90)) if located else None,
            lon=draw(st.floats(-180, 180)) if located else None,
        ),
        resources=Declared(cpus=draw(optional(st.integers(1, 512))), memory=draw(optional(st.integers(0, 1 << 44)))),
        price=PriceList(currency="USD", vcpu_hour=draw(money), transfer_gib=draw(money)),
        labels=draw(
            st.dictionaries(
                st.from_regex("x[a-z0-9_-]{0,8}", fullmatch=True), st.sampled_from(["a", "New York"]), max_size=3
            )
        ),
        address=draw(optional(lines)),
        state_dir=draw(optional(lines)),
        ssh_options=SshOptions(identity=draw(optional(st.just("/keys/id")))),
    )

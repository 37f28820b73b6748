"""The inventory: hosts.toml, and hosts added to and taken from it."""

from __future__ import annotations

import threading
from decimal import Decimal
from pathlib import Path

import pytest

from xenoshell import data, tomlfile
from xenoshell.errors import BadInput
from xenoshell.fleet.inventory import (
    Host,
    HostsFile,
    Inventory,
    PriceList,
    SshTarget,
    add_host,
    load_inventory,
    parse_target,
    remove_host,
)
from xenoshell.tomlfile import InputErrors

SAMPLE = data.sample("hosts.toml")


def host(name: str, ssh: str = "alias") -> Host:
    return Host(name=name, ssh=ssh)


def test_the_sample_inventory() -> None:
    inventory = load_inventory(SAMPLE)
    ams = inventory.get("ams-1")
    assert ams.price.vcpu_hour == Decimal("0.004") and ams.price.disk_gib_hour == Decimal("0.00006")
    assert ams.resources.memory == 16 << 30 and ams.place.lat == 52.37 and ams.labels == {"tier": "edge"}
    assert ams.target == SshTarget("ams-1.example.net", "xeno", 2222)
    assert inventory.get("nyc-2").price.free and inventory.label_keys() == {"tier"}


def test_a_file_that_does_not_exist_has_no_hosts(tmp_path: Path) -> None:
    assert load_inventory(tmp_path / "none.toml") == Inventory()


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("alias", SshTarget("alias")),
        ("me@h.example:22", SshTarget("h.example", "me", 22)),
        ("h:1", SshTarget("h", None, 1)),
        ("u@[2001:db8::1]:22", SshTarget("2001:db8::1", "u", 22)),
        ("[::1]", SshTarget("::1")),
        ("[fe80::1%eth0]", SshTarget("fe80::1%eth0")),
    ],
)
def test_ssh_targets(text: str, target: SshTarget) -> None:
    assert parse_target(text) == target
    assert parse_target(str(target)) == target


@pytest.mark.parametrize(
    "text",
    ["", "-oProxyCommand=x", "me@-h", "-l@h", "h:0", "h:99999", "::1", "a b", "h:", "@h", "u@h@i", "h\n", "$(x)"],
)
def test_what_is_no_ssh_target_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"ssh target|port"):
        parse_target(text)


def test_all_errors_of_an_inventory_are_reported() -> None:
    text = """\
[[host]]
name = "Ams 1"
ssh = "-x"
[host.place]
lat = 91
[host.price]
vcpu_hour = 0.1
[host.labels]
region = "eu"
"x y" = "z"
[[host]]
name = "b"
ssh = "b"
adress = "x"
[[host]]
name = "b"
ssh = "b"
bind = "localhost"
[host.resources]
memory = 8
"""
    with pytest.raises(InputErrors) as caught:
        tomlfile.loads(text, HostsFile, "hosts.toml")
    found = [(e.line, e.key) for e in caught.value.errors]
    assert found == [
        (2, "host[0].name"),
        (3, "host[0].ssh"),
        (5, "host[0].place.lat"),
        (6, "host[0].price.currency"),
        (9, "host[0].labels.region"),
        (10, 'host[0].labels."x y"'),
        (14, "host[1].adress"),
        (16, "host[2].name"),
        (18, "host[2].bind"),
        (20, "host[2].resources.memory"),
    ]
    assert caught.value.errors[6].nearest == "address"


def test_prices_are_exact_whether_numbers_or_texts() -> None:
    text = '[[host]]\nname = "a"\nssh = "a"\nprice = { currency = "EUR", vcpu_hour = 0.1, transfer_gib = "0.3" }\n'
    price = tomlfile.loads(text, HostsFile).host[0].price
    assert price == PriceList(currency="EUR", vcpu_hour=Decimal("0.1"), transfer_gib=Decimal("0.3"))


def test_an_unknown_host_names_the_nearest() -> None:
    inventory = Inventory((host("ams-1"), host("nyc-2")))
    with pytest.raises(BadInput, match="did you mean ams-1"):
        inventory.get("asm-1")
    with pytest.raises(BadInput, match="ams-1, nyc-2"):
        inventory.get("zzz")
    with pytest.raises(BadInput, match="hosts add"):
        Inventory().get("zzz")


def test_two_files_may_not_use_a_name_twice(tmp_path: Path) -> None:
    mine, lab = tmp_path / "hosts.toml", tmp_path / "lab.toml"
    add_host(mine, host("a"))
    add_host(lab, host("b"))
    assert load_inventory(mine, lab).names() == ("a", "b")
    add_host(lab, host("a"))
    with pytest.raises(BadInput, match=r"lab\.toml: the host a is in .*hosts\.toml too"):
        load_inventory(mine, lab)


def test_adding_and_removing_keeps_what_people_wrote(tmp_path: Path) -> None:
    path = tmp_path / "config" / "hosts.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(SAMPLE.read_text())
    add_host(path, Host(name="new", ssh="me@new:22", labels={"tier": "core"}))
    assert path.read_text().startswith(SAMPLE.read_text())
    assert load_inventory(path).names() == ("ams-1", "nyc-2", "new")
    remove_host(path, "new")
    assert path.read_text().rstrip("\n") == SAMPLE.read_text().rstrip("\n")
    remove_host(path, "nyc-2")
    assert "an alias:" not in path.read_text() and "known_hosts" not in path.read_text()
    assert "# An inventory: copy what you need" in path.read_text() and 'tier = "edge"' in path.read_text()
    assert load_inventory(path).names() == ("ams-1",)
    remove_host(path, "ams-1")
    assert load_inventory(path) == Inventory()
    add_host(path, host("again"))
    assert load_inventory(path).names() == ("again",)


def test_a_name_is_not_added_twice_nor_removed_when_it_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "hosts.toml"
    add_host(path, host("a"))
    before = path.read_text()
    with pytest.raises(BadInput, match="already"):
        add_host(path, host("a"))
    with pytest.raises(BadInput, match="did you mean a"):
        remove_host(path, "aa")
    assert path.read_text() == before


def test_a_broken_inventory_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "hosts.toml"
    path.write_text("[[host]\n")
    with pytest.raises(InputErrors):
        add_host(path, host("a"))
    assert path.read_text() == "[[host]\n"


def test_an_inventory_that_a_section_cannot_follow_is_refused_unharmed(tmp_path: Path) -> None:
    path = tmp_path / "hosts.toml"
    path.write_text('host = [{ name = "a", ssh = "a" }]\n')
    with pytest.raises(BadInput):
        add_host(path, host("b"))
    assert load_inventory(path).names() == ("a",)


def test_two_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "hosts.toml"
    threads = [threading.Thread(target=add_host, args=(path, host(f"h{i}"))) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(load_inventory(path).names()) == [f"h{i}" for i in range(8)]


def test_paths_of_ssh_options_are_relative_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "hosts.toml"
    path.write_text('[[host]]\nname = "a"\nssh = "a"\nssh_options = { identity = "keys/id", known_hosts = "~/kh" }\n')
    options = load_inventory(path).get("a").ssh_options
    assert (
        options.identity == str(tmp_path / "keys/id")
        and options.known_hosts == str(Path.home() / "kh")
        and options.config is None
    )


def test_a_view_joins_what_is_declared_and_what_is_probed() -> None:
    from xenoshell.wire.values import HostFacts

    facts = HostFacts(
        helper="", python="", kernel="", arch="x86_64", hostname="", user="", boot_id="", clock=0.0, cpus=16, load1=0.0,
        memory_mib=4096, memory_free_mib=0, disk_free_mib=1024, state_dir="", qemu="", qemu_img=True, kvm="broken",
        codecs=(), channel="", blobs=(), vms=(),
    )  # fmt: skip
    ams = load_inventory(SAMPLE).get("ams-1")
    declared, probed = ams.view(), ams.view(facts=facts, rtt_ms=12.0, price_per_hour=Decimal("0.1"))
    assert (declared.vcpus, declared.memory, declared.disk, declared.rtt_ms, declared.accel) == (
        8,
        16 << 30,
        200 << 30,
        None,
        None,
    )
    assert (probed.vcpus, probed.memory, probed.disk, probed.rtt_ms, probed.accel) == (8, 4 << 30, 1 << 30, 12.0, "tcg")
    assert probed.price_per_hour == Decimal("0.1") and probed.region == "eu" and probed.labels == {"tier": "edge"}

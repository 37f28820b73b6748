"""Policies and formats of the host's side as functions of values: no process, no clock."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.host_vm.guests import MAC, spec
from xenoshell.host import lease, meter, ports, qemu, ready
from xenoshell.host.lease import Lease, Now, Running
from xenoshell.host.listener import MAX_KEYS, Listener, host_keys
from xenoshell.host.qemu import Files
from xenoshell.wire.causes import Failure
from xenoshell.wire.values import Forward

FILES = Files("/blobs/k", "/blobs/i", "disk.qcow2", "seed.iso", 7)


def option(arguments: list[str], name: str) -> list[str]:
    """Every value given for the option ``name``."""
    return [value for at, value in enumerate(arguments) if arguments[at - 1] == name]


# ---------------------------------------------------------------- QEMU's command line


def test_a_kernel_boot_is_spelt_out() -> None:
    forwards = (Forward(80, 20080), Forward(53, 5353, "udp", "0.0.0.0"))
    assert qemu.arguments(spec(vcpus=2, memory_mib=512, cmdline="a=1,2 b"), forwards, "tcg", FILES) == [
        "qemu-system-x86_64", "-name", "edge.web-1.0123abcd", "-M", "pc,graphics=off",
        "-nodefaults", "-no-user-config", "-display", "none", "-S", "-no-shutdown",
        "-sandbox", "on,obsolete=deny,resourcecontrol=deny,elevateprivileges=deny,spawn=deny",
        "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "512M",
        "-chardev", "socket,id=qmp,fd=7,server=on,wait=off", "-mon", "chardev=qmp,mode=control",
        "-chardev", "pipe,id=con,path=con", "-serial", "chardev:con",
        "-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng", "-device", "pvpanic",
        "-kernel", "/blobs/k", "-initrd", "/blobs/i", "-append", "a=1,2 b",
        "-blockdev", "driver=qcow2,node-name=disk,discard=unmap,file.driver=file,file.filename=disk.qcow2",
        "-device", "virtio-blk-pci,drive=disk,bootindex=1,werror=enospc,rerror=report",
        "-blockdev", "driver=raw,node-name=seed,read-only=on,file.driver=file,file.filename=seed.iso",
        "-device", "virtio-blk-pci,drive=seed",
        "-netdev", "user,id=net,hostfwd=tcp:127.0.0.1:20080-:80,hostfwd=udp:0.0.0.0:5353-:53",
        "-device", "virtio-net-pci,netdev=net,romfile=,mac=" + MAC,
    ]  # fmt: skip


def test_a_disk_boot_names_no_kernel_and_kvm_shows_the_host_cpu() -> None:
    files = Files(None, None, "disk.qcow2", None, 3)
    arguments = qemu.arguments(spec(boot="disk", kernel=None, cmdline="ignored"), (), "kvm", files)
    assert not {"-kernel", "-initrd", "-append"} & set(arguments)
    assert option(arguments, "-accel") == ["kvm"] and option(arguments, "-cpu") == ["host"]
    assert len(option(arguments, "-blockdev")) == 1


def test_a_bridge_may_start_its_helper_and_has_no_forwards() -> None:
    arguments = qemu.arguments(spec(network="bridge"), (), "tcg", FILES)
    assert option(arguments, "-netdev") == ["bridge,id=net,br=br0"]
    assert "spawn=allow" in option(arguments, "-sandbox")[0]


# ---------------------------------------------------------------- ports


def chosen(*forwards: Forward, before: tuple[Forward, ...] = (), taken: tuple[int, ...] = ()) -> tuple[Forward, ...]:
    return ports.choose(forwards, before, "seed", lambda proto, bind, port: port not in taken, lambda p, n: "nginx")


def test_free_ports_are_chosen_and_differ() -> None:
    first, second, third = chosen(Forward(80), Forward(443), Forward(22, 2222))
    assert 20000 <= first.host <= 29999 and 20000 <= second.host <= 29999 and first.host != second.host
    assert third.host == 2222
    assert chosen(Forward(80), taken=(first.host,))[0].host != first.host


def test_a_port_chosen_before_is_kept_while_it_is_free() -> None:
    assert chosen(Forward(80), before=(Forward(80, 25555),))[0].host == 25555
    assert chosen(Forward(80), before=(Forward(80, 25555),), taken=(25555,))[0].host != 25555


def test_a_fixed_port_in_use_is_refused_with_its_holder() -> None:
    with pytest.raises(Failure) as caught:
        chosen(Forward(80, 8080), taken=(8080,))
    assert caught.value.cause == "port-in-use"
    assert caught.value.message == "tcp port 8080 at 127.0.0.1 is in use by nginx"


def test_no_free_port_is_said() -> None:
    with pytest.raises(Failure, match="20000 to 29999"):
        chosen(Forward(80), taken=tuple(range(20000, 30000)))


def test_two_forwards_never_get_one_port() -> None:
    many = chosen(*(Forward(n) for n in range(1, 400)))
    assert len({f.host for f in many}) == 399


# ---------------------------------------------------------------- lease and running time

NOW = Now(boot=1000.0, boot_id="a", wall=50_000.0)


@pytest.mark.parametrize(
    ("then", "expected"),
    [
        (Now(1060.0, "a", 50_060.0), 40.0),
        (Now(1060.0, "a", 10.0), 40.0),  # the clock was set back
        (Now(1060.0, "a", 9e9), 40.0),  # or far ahead
        (Now(1200.0, "a", 50_000.0), 0.0),
        (Now(5.0, "b", 50_090.0), 10.0),  # rebooted: the wall clock is all there is
        (Now(5.0, "b", 60_000.0), 0.0),
    ],
)
def test_a_lease_of_100_s_has_left(then: Now, expected: float) -> None:
    assert lease.left(lease.grant(NOW, 100), then) == expected


def test_no_lease_never_ends() -> None:
    assert lease.grant(NOW, 0) == Lease() and lease.left(Lease(), NOW) == -1


def test_running_time_adds_up_over_runs_and_counts_only_what_was_seen() -> None:
    first = lease.seen(lease.start(Running(), NOW), Now(1010.0, "a", 0))
    assert lease.total(first) == 10
    second = lease.start(first, Now(2000.0, "a", 0))
    assert lease.total(second) == 10
    assert lease.total(lease.seen(second, Now(2005.0, "a", 0))) == 15
    assert lease.total(lease.seen(second, Now(9000.0, "b", 0))) == 10  # another boot: that run is over
    assert lease.total(lease.seen(first, Now(1005.0, "a", 0))) == 10  # never backwards


# ---------------------------------------------------------------- the console listened to

PANIC = b"[   12.345678] Kernel panic - not syncing: VFS: Unable to mount root fs\r\n"


def test_a_panic_is_heard_in_pieces_of_any_size() -> None:
    text = b"booting\r\n" + PANIC + b"[   12.5] ---[ end Kernel panic - not syncing: VFS ]---\r\n"
    for size in (1, 2, 7, 50, 1000):
        listener = Listener()
        for at in range(0, len(text), size):
            listener.feed(text[at : at + size])
        assert listener.panic == "Kernel panic - not syncing: VFS: Unable to mount root fs", size
        assert listener.panic_ended


def test_a_kernel_that_goes_on_after_its_panic_had_none() -> None:
    for size in (1, 7, 1000):
        listener = Listener()
        text = PANIC + b"[   12.5] ---[ end Kernel panic - not syncing: VFS ]---\r\nroot@web:~# "
        for at in range(0, len(text), size):
            listener.feed(text[at : at + size])
        assert listener.panic == "" and not listener.panic_ended
        listener.feed(b"\r\n" + PANIC)
        assert listener.panic, "the next one counts again"


def test_endless_words_after_a_panic_are_none() -> None:
    listener = Listener()
    listener.feed(PANIC)
    for _ in range(70):
        listener.feed(b"work goes on\n" * 80)
    assert listener.panic == ""


@pytest.mark.parametrize(
    "quoted",
    [
        b"Nov 24 07:00:00 web kernel: Kernel panic - not syncing: old news\n",
        b"grep 'Kernel panic - not syncing' /var/log/kern.log\n",
        b"> Kernel panic - not syncing\n",
    ],
)
def test_a_quoted_panic_is_none(quoted: bytes) -> None:
    listener = Listener()
    listener.feed(b"\n" + quoted + b"\n")
    assert listener.panic == ""


def test_readiness_text_is_seen_across_pieces() -> None:
    listener = Listener("web login:")
    listener.feed(b"Debian 12\r\nweb lo")
    assert not listener.matched
    listener.feed(b"gin: ")
    assert listener.matched


KEYS = b"""-----BEGIN SSH HOST KEY KEYS-----\r
ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGxNh9m root@web\r
ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTY= root@web\r
not a key\r
-----END SSH HOST KEY KEYS-----\r
"""


def test_host_keys_are_collected_whatever_the_pieces() -> None:
    expected = (
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGxNh9m",
        "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTY=",
    )
    for size in (1, 3, 40, 4000):
        listener = Listener()
        for at in range(0, len(KEYS), size):
            listener.feed(KEYS[at : at + size])
        assert listener.host_keys == expected, size


def test_endless_host_keys_are_given_up() -> None:
    listener = Listener()
    listener.feed(b"-----BEGIN SSH HOST KEY KEYS-----\n")
    for _ in range(MAX_KEYS // 1000 + 20):
        listener.feed(b"ssh-rsa " + b"A" * 1000)
    assert listener._keys is None and listener.host_keys == ()


@given(st.binary(max_size=3000))
def test_no_console_output_breaks_the_listener(data: bytes) -> None:
    listener = Listener("login:")
    listener.feed(b"-----BEGIN SSH HOST KEY KEYS-----" + data)
    listener.feed(data + b"-----END SSH HOST KEY KEYS-----")
    assert len(listener.host_keys) <= 16
    host_keys(data)


# ---------------------------------------------------------------- metering


def record(source: str, size: int, kept: int = 32) -> bytes:
    packet = bytes(6) + bytes.fromhex(source.replace(":", "")) + bytes(20)
    return struct.pack("<IIII", 1, 2, kept, size) + packet[:kept]


def test_packets_are_summed_by_who_sent_them() -> None:
    mac = bytes.fromhex(MAC.replace(":", ""))
    data = record(MAC, 100) + record("52:55:0a:00:02:02", 1500) + record(MAC, 60, kept=16)
    assert meter.packets(data, mac) == (len(data), 1500, 160)
    assert meter.packets(data[:-1], mac)[0] == len(data) - 32  # a record cut off is left for later
    assert meter.packets(b"", mac) == (0, 0, 0)
    with pytest.raises(ValueError, match="pcap"):
        meter.packets(b"\xff" * 64, mac)


def test_the_guests_address_is_found_behind_a_tap_devices_header() -> None:
    mac = bytes.fromhex(MAC.replace(":", ""))
    data = struct.pack("<IIII", 1, 2, 32, 900) + bytes(12) + bytes(6) + mac + bytes(8)
    assert meter.packets(data, mac) == (48, 0, 900)


def test_a_growing_dump_is_read_to_the_byte_and_gives_its_space_back(tmp_path: Path) -> None:
    path = tmp_path / "net.pcap"
    dump = meter.Dump(str(path), MAC)
    assert dump.read() == (0, 0)  # QEMU has not made it yet
    inward = outward = 0
    with path.open("wb", buffering=0) as file:  # as QEMU does: at its own position, not at the end
        file.write(bytes(24))
        for n in range(40):
            data = record(MAC, 100) * 300 + record("52:55:0a:00:02:02", 1500) * 100
            file.write(data[: n * 7])
            more_in, more_out = dump.read()
            file.write(data[n * 7 :])
            inward, outward = inward + more_in, outward + more_out
    more_in, more_out = dump.read()
    assert (inward + more_in, outward + more_out) == (40 * 100 * 1500, 40 * 300 * 100)
    assert path.stat().st_blocks * 512 < 400 << 10 < path.stat().st_size
    again = meter.Dump(str(path), MAC, dump.offset)  # another supervisor goes on there
    assert again.read() == (0, 0)


def test_the_disks_use_is_summed() -> None:
    stats = [
        {"qdev": "/a", "stats": {"rd_bytes": 10, "wr_bytes": 1}},
        {"qdev": "/b", "stats": {"rd_bytes": 5, "wr_bytes": 0}},
        {"stats": {"rd_bytes": 99}},
    ]
    assert meter.disk(stats) == (15, 1) and meter.disk(None) == (0, 0)


# ---------------------------------------------------------------- readiness

USERNET = """Hub -1 (net):
  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ
  TCP[{0}]      20       127.0.0.1 25112       10.0.2.15    80     0     0
  TCP[HOST_FORWARD]  12       127.0.0.1 25112       10.0.2.15    80     0     0
"""


def test_only_the_guests_own_acceptance_counts_as_established() -> None:
    assert ready.established(USERNET.format("ESTABLISHED"), 25112)
    assert not ready.established(USERNET.format("SYN_SENT"), 25112)
    assert not ready.established(USERNET.format("ESTABLISHED"), 25113)
    assert not ready.established("", 1)

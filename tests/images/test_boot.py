"""The templates boot, become what the seed says, can be logged into, and obey the power button."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from tests.images.guest import Guest, boot
from tests.support import eventually
from xenoshell.images import debian
from xenoshell.images.manifest import Manifest
from xenoshell.images.seed import seed
from xenoshell.images.store import ImageStore, remove_tree
from xenoshell.session.model import Customise, File, VmGroup

pytestmark = pytest.mark.e2e
#: Generous: the machine may be emulating several guests at once.
BOOT_S = 90.0


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A fresh SSH key."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True, timeout=30)
    return tmp_path / "key"


def make_seed(base: Path, key: Path, instance: str = "first") -> bytes:
    customise = Customise(
        hostname="{vm}.{host}",
        authorized_keys=(f"{key}.pub",),
        run=("echo $(hostname) >> /srv/www/runs", "no-such-command", "chmod 644 /srv/www/runs"),
        file=(
            File(path="/srv/www/index.html", content="served by {vm} on {host}\n"),
            File(path="/opt/with space/tool", content="#!/bin/sh\n", mode="0750", owner="nobody"),
        ),
    )
    return seed(VmGroup(name="web", image="tiny", customise=customise), "web", "ams-1", "shop", base, instance)


def ready(guest: Guest, text: str) -> None:
    eventually(lambda: text in guest.page(), BOOT_S, f"the page with {text!r}")
    eventually(lambda: "login: root" in guest.console(), BOOT_S, "the prompt")


def power_off(guest: Guest) -> None:
    """It obeys the power button (tiny in 0.4 s on a machine with nothing else to do)."""
    guest.press_power_button()
    assert guest.process.wait(120) == 0


@pytest.mark.timeout(300)
def test_tiny_becomes_what_the_seed_says_once(built: ImageStore, tmp_path: Path, key: Path) -> None:
    image = built.get("tiny").manifest
    with boot(built, image, tmp_path, make_seed(tmp_path, key)) as guest:
        ready(guest, "served by web on ams-1")
        assert "xenoshell tiny" in guest.console() and "web.ams-1 login:" in guest.console()
        assert "command 2 ended with status 127: no-such-command" in guest.console()
        assert guest.page("/runs") == "web.ams-1\n"
        assert guest.ssh(key, "stat -c '%a %U %G' '/opt/with space/tool'; hostname") == "750 nobody root\nweb.ams-1\n"
        assert "QEMU0001:00" in guest.ssh(key, "ls /sys/bus/platform/drivers/pvpanic-mmio")  # so a panic is told
        first_key = guest.ssh(key, "dropbearkey -y -f /etc/dropbear/host_key | grep ^ssh-")
        guest.ssh(key, "echo changed by hand > /srv/www/index.html && sync")
        power_off(guest)
    with boot(built, image, tmp_path, make_seed(tmp_path, key)) as guest:
        ready(guest, "changed by hand")
        assert guest.page("/runs") == "web.ams-1\n"
        assert guest.ssh(key, "dropbearkey -y -f /etc/dropbear/host_key | grep ^ssh-") == first_key
    with boot(built, image, tmp_path, make_seed(tmp_path, key, "second")) as guest:
        ready(guest, "served by web on ams-1")
        assert guest.page("/runs") == "web.ams-1\nweb.ams-1\n"


@pytest.mark.timeout(200)
def test_tiny_boots_from_its_disk_by_bios_and_needs_no_seed(built: ImageStore, tmp_path: Path) -> None:
    image = built.get("tiny-disk").manifest
    assert image.boot == "disk"
    with boot(built, image, tmp_path) as guest:
        ready(guest, "xenoshell tiny")
        assert "tiny login:" in guest.console() and "xenoshell:" not in guest.console()
        power_off(guest)


@pytest.mark.timeout(120)
def test_building_tiny_again_gives_the_same_image_and_needs_no_network(
    built: ImageStore, tmp_path: Path, package_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xenoshell.images import packages, tiny

    def offline(*_: object) -> None:
        raise AssertionError("apt was asked")

    monkeypatch.setattr(packages, "run_apt", offline)
    old = os.umask(0o077)
    try:
        again = tiny.build(ImageStore(tmp_path / "again"), "tiny", lambda _: None, cache=package_cache)
    finally:
        os.umask(old)
    assert again == built.get("tiny").manifest
    packed = [s.packed for b in again.blobs for s in built.recipe(b.digest, "zstd").segments]
    assert sum(packed) < 20 << 20


@pytest.fixture(scope="module")
def debian_built(package_cache: Path) -> Iterator[tuple[ImageStore, Manifest]]:
    """The template ``debian``: a minute of work, whichever way it is booted."""
    root = Path(tempfile.mkdtemp(prefix="xt-debian-", dir="/tmp"))
    try:
        store = ImageStore(root)
        yield store, debian.build(store, "debian", print, cache=package_cache)
    finally:
        remove_tree(root)


slow = pytest.mark.skipif(
    not os.environ.get("XENOSHELL_TEST_DEBIAN"), reason="another minute; set XENOSHELL_TEST_DEBIAN=1"
)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("way", ["kernel", pytest.param("disk", marks=slow)])
def test_debian_boots_both_ways_and_grows_to_its_disk(
    debian_built: tuple[ImageStore, Manifest], tmp_path: Path, key: Path, way: Literal["kernel", "disk"]
) -> None:
    store, image = debian_built
    made = replace(image, boot=way)
    with boot(store, made, tmp_path, make_seed(tmp_path, key), size="5G", memory_mib=512) as guest:
        eventually(lambda: "served by web on ams-1" in guest.page(), 300, "the page")
        eventually(lambda: "login: root" in guest.console(), 300, "the prompt")
        eventually(lambda: guest.page("/runs") == "web.ams-1\n", 60, "the commands")
        assert guest.ssh(key, "systemctl --failed --no-legend; hostname") == "web.ams-1\n"
        assert int(guest.ssh(key, "df --output=size -BM / | tail -1").strip().rstrip("M")) > 4900
        assert (
            guest.ssh(key, "stat -c '%U %G %a' /usr/bin/su /var/mail /")
            == "root root 4755\nroot mail 2775\nroot root 755\n"
        )
        assert len(guest.ssh(key, "cat /etc/machine-id").strip()) == 32
        power_off(guest)

"""Units are turned on as systemctl would do it, on machines that have none."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from xenoshell.images.units import enable
from xenoshell.wire.causes import Failure

FILES = {
    "a.service": "[Unit]\nDescription=a\n[Service]\nExecStart=/bin/true\n"
    "[Install]\n# WantedBy=no.target\nWantedBy=multi-user.target  graphical.target\n"
    "Alias=dbus-a.service\nAlso=a.socket\n",
    "a.socket": "[Socket]\nListenStream=/run/a\n[Install]\nWantedBy=sockets.target\n",
    "grow.service": "[Service]\nExecStart=/bin/true\n[Install]\nRequiredBy=local-fs.target\n",
    "tty@.service": "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=getty.target\n",
}
UNITS = ("a.service", "grow.service", "tty@ttyS0.service")


def tree(path: Path) -> Path:
    for name, text in FILES.items():
        place = path / ("etc" if name == "grow.service" else "usr/lib") / "systemd/system" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    (path / "lib").symlink_to("usr/lib")
    return path


def links(path: Path) -> dict[str, str]:
    """Link -> the unit file that it leads to."""
    system = path / "etc/systemd/system"
    return {
        str(link.relative_to(system)): str(Path(*Path(str(link.readlink()).lstrip("/")).parts[-3:]))
        for link in system.rglob("*")
        if link.is_symlink()
    }


def test_units_are_linked_as_their_install_sections_say(tmp_path: Path) -> None:
    made = tree(tmp_path / "made")
    enable(made, UNITS)
    assert set(links(made)) == {
        "multi-user.target.wants/a.service",
        "graphical.target.wants/a.service",
        "dbus-a.service",
        "sockets.target.wants/a.socket",
        "local-fs.target.requires/grow.service",
        "getty.target.wants/tty@ttyS0.service",
    }
    for link in (made / "etc/systemd/system").rglob("*"):
        if link.is_symlink():
            assert (made / str(link.readlink()).lstrip("/")).is_file()
    enable(made, UNITS)  # again is no error


def test_it_does_what_systemctl_does(tmp_path: Path) -> None:
    if shutil.which("systemctl") is None:
        pytest.skip("no systemctl here")
    ours, theirs = tree(tmp_path / "ours"), tree(tmp_path / "theirs")
    enable(ours, UNITS)
    subprocess.run(["systemctl", f"--root={theirs}", "enable", *UNITS], check=True, capture_output=True, timeout=60)
    assert links(ours) == links(theirs)


@pytest.mark.parametrize("unit", ["none.service", "none@x.service"])
def test_a_unit_that_is_not_there_is_named(unit: str, tmp_path: Path) -> None:
    with pytest.raises(Failure, match=unit):
        enable(tree(tmp_path / "made"), [unit])

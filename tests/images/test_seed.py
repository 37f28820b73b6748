"""A seed disk is what cloud-init and the first-boot agent expect, and errors name the key and the path."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pycdlib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenoshell.errors import BadInput
from xenoshell.images.iso import iso
from xenoshell.images.seed import seed
from xenoshell.session.model import Customise, File, VmGroup

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGVmnKp7cZ5Jk0Q9aWv0m2yE1H2b4Xk3Tj7w8o9p0qRs me@here"


def group(**customise: Any) -> VmGroup:
    return VmGroup(name="web", image="tiny", count=2, customise=Customise(**customise))


def make(base: Path, **customise: Any) -> bytes:
    return seed(group(**customise), "web-2", "ams", "shop", base, "shop.web-2.1")


def read(disk: bytes, name: str, kind: str = "joliet_path") -> bytes:
    opened, out = pycdlib.PyCdlib(), io.BytesIO()
    opened.open_fp(io.BytesIO(disk))
    opened.get_file_from_iso_fp(out, **{kind: f"/{name}"})
    opened.close()
    return out.getvalue()


def cloud(disk: bytes) -> dict[str, Any]:
    text = read(disk, "user-data")
    assert text.startswith(b"#cloud-config\n")
    loaded: dict[str, Any] = json.loads(text.split(b"\n", 1)[1])
    return loaded


def test_the_disk_is_a_nocloud_seed(tmp_path: Path) -> None:
    disk = make(tmp_path, hostname="{vm}.{host}", authorized_keys=(KEY,), run=("echo {session} {index}",))
    opened = pycdlib.PyCdlib()
    opened.open_fp(io.BytesIO(disk))
    assert opened.pvd.volume_identifier.strip() == b"cidata" and opened.has_rock_ridge() and opened.has_joliet()
    names = {c.rock_ridge.name().decode() for c in opened.list_children(rr_path="/") if c.rock_ridge} - {"", ".", ".."}
    opened.close()
    assert names == {"user-data", "meta-data", "network-config", "xenoshell.sh"}
    for kind in ("rr_path", "joliet_path"):
        assert json.loads(read(disk, "meta-data", kind)) == {
            "instance-id": "shop.web-2.1",
            "local-hostname": "web-2.ams",
        }
    config = cloud(disk)
    assert (config["hostname"], config["fqdn"]) == ("web-2", "web-2.ams")
    assert config["ssh_authorized_keys"] == [KEY] and config["runcmd"] == ["echo shop 2"]
    assert json.loads(read(disk, "network-config"))["version"] == 2


def test_files_arrive_byte_for_byte_with_mode_and_owner(tmp_path: Path) -> None:
    binary = bytes(range(256)) * 9
    (tmp_path / "logo.png").write_bytes(binary)
    disk = make(
        tmp_path,
        file=(
            File(path="/srv/www/index.html", content="served by {vm} on {host}\n"),
            File(path="/srv/www/logo.png", source="logo.png", mode="600", owner="www-data:www-data"),
        ),
    )  # fmt: skip
    page, logo = cloud(disk)["write_files"]
    assert base64.b64decode(page["content"]) == b"served by web-2 on ams\n" and page["permissions"] == "0644"
    assert base64.b64decode(logo["content"]) == binary
    assert (logo["permissions"], logo["owner"], logo["defer"]) == ("0600", "www-data:www-data", True)


def test_the_script_is_one_that_a_posix_shell_reads(tmp_path: Path) -> None:
    nasty = """it's "$HOME" `id` \\ 'xenoshell-data' %s"""
    disk = make(tmp_path, run=(nasty, "true"), authorized_keys=(KEY,), file=(File(path="/a b/c'd", content=nasty),))
    script = tmp_path / "xenoshell.sh"
    script.write_bytes(read(disk, "xenoshell.sh"))
    subprocess.run(["sh", "-n", str(script)], check=True, timeout=10)
    said = subprocess.run(["sh", str(script), "instance"], check=True, timeout=10, capture_output=True)
    assert said.stdout == b"shop.web-2.1\n"
    # its words reach the shell as they are: `run_command` is replaced by one that shows them
    shown = script.read_text().replace('    sh -c "$2" || fail', '    printf "%s" "$2"; return; fail')
    told = subprocess.run(["sh", "-c", shown, "xenoshell.sh", "run"], check=True, timeout=10, capture_output=True)
    assert told.stdout.decode() == nasty + "true"


def test_a_failing_command_is_said_and_the_next_one_runs(tmp_path: Path) -> None:
    script = read(make(tmp_path, run=("echo one", "exit 7", "echo three")), "xenoshell.sh").decode()
    done = subprocess.run(["sh", "-c", script, "xenoshell.sh", "run"], check=False, timeout=10, capture_output=True)
    assert done.stdout == b"one\nthree\n"
    assert b"command 2 ended with status 7: exit 7" in done.stderr and done.returncode == 1


def test_keys_come_from_files_once_each(tmp_path: Path) -> None:
    (tmp_path / "keys.pub").write_text(f"# mine\n{KEY}\n\n{KEY} again\n")
    assert cloud(make(tmp_path, authorized_keys=("keys.pub", KEY)))["ssh_authorized_keys"] == [KEY, f"{KEY} again"]


@pytest.mark.parametrize(
    ("customise", "parts"),
    [
        ({"authorized_keys": ("nokey.pub",)}, ("authorized_keys", "nokey.pub", "No such file")),
        ({"authorized_keys": ("private",)}, ("authorized_keys", "private key")),
        ({"authorized_keys": ("text",)}, ("authorized_keys", "holds no SSH public key")),
        ({"file": (File(path="/x", source="gone.png"),)}, ("customise.file /x", "gone.png", "No such file")),
        ({"file": (File(path="/x", source="."),)}, ("customise.file /x", "Is a directory")),
    ],
)
def test_errors_name_the_key_and_the_path(tmp_path: Path, customise: dict[str, Any], parts: tuple[str, ...]) -> None:
    (tmp_path / "private").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    (tmp_path / "text").write_text("hello\n")
    with pytest.raises(BadInput) as error:
        make(tmp_path, **customise)
    assert all(part in error.value.message for part in parts) and error.value.remedy


@pytest.mark.parametrize("key", ["file", "authorized_keys"])
def test_what_would_never_end_is_not_read(tmp_path: Path, key: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    for source, words in (("pipe", "not a regular file"), ("/dev/zero", "not a regular file"), ("huge", "48 MiB")):
        asked = (File(path="/x", source=source),) if key == "file" else (source,)
        with pytest.raises(BadInput, match=words) as error:
            make(tmp_path, **{key: asked})
        assert source in error.value.message and error.value.remedy


def test_a_seed_that_is_too_large_says_what_to_do_instead(tmp_path: Path) -> None:
    with (tmp_path / "big").open("wb") as file:
        file.truncate(20 << 20)
    with pytest.raises(BadInput, match=r"customise\.file takes"):
        make(tmp_path, file=(File(path="/big", source="big"),))


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make(tmp_path, hostname="x", run=("a",))
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    monkeypatch.setattr("time.time", lambda: 4_000_000_000.0)
    assert make(tmp_path, hostname="x", run=("a",)) == first
    assert make(tmp_path, hostname="y", run=("a",)) != first


names = st.text("abcdefghijklmnopqrstuvwxyz-._ ABC", min_size=1, max_size=30).filter(lambda name: name.strip(". "))


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(names, st.binary(max_size=5000), min_size=1, max_size=8))
def test_any_few_files_are_read_back_by_both_names(files: dict[str, bytes]) -> None:
    disk = iso("volume", files)
    for name, data in files.items():
        assert read(disk, name, "joliet_path") == read(disk, name, "rr_path") == data


@pytest.mark.parametrize("files", [{"a/b": b""}, {"é": b""}, {"": b""}, {f"file{i}": b"" for i in range(40)}])
def test_what_does_not_fit_is_refused(files: dict[str, bytes]) -> None:
    with pytest.raises(ValueError, match="ISO 9660"):
        iso("volume", files)

"""The seed disk of one VM: what ``[vm.customise]`` says, as cloud-init reads it and as the first-boot agent does.

NoCloud (cloud-init's documentation): an ISO 9660 disk with the volume name ``cidata`` and the files ``user-data``,
``meta-data`` and ``network-config``. ``xenoshell.sh`` is ours: the same as a POSIX shell script. The bytes depend on
nothing but the arguments and the files they name, so that a deployment that is repeated finds the VM unchanged.
"""

from __future__ import annotations

import base64
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from xenoshell.errors import BadInput
from xenoshell.images.iso import iso
from xenoshell.session.model import File, VmGroup
from xenoshell.session.placeholders import expand

VOLUME = "cidata"
#: A seed travels whole within one request and lies in memory on the way.
LARGEST = 48 << 20


@dataclass(frozen=True)
class GuestFile:
    """A file as it is to be in the guest."""

    path: str
    data: bytes
    mode: str
    owner: str


@dataclass(frozen=True)
class Instance:
    """What one VM is to become at its first boot, with everything read and filled in."""

    id: str
    hostname: str
    keys: tuple[str, ...]
    files: tuple[GuestFile, ...]
    run: tuple[str, ...]


def seed(  # noqa: PLR0917
    group: VmGroup, vm: str, host: str, session: str, base_dir: Path, instance_id: str
) -> bytes:
    """The seed disk (ISO 9660) of VM ``vm`` of ``group`` on ``host``. Relative paths are relative to ``base_dir``.

    Raises `BadInput` naming the key and the path when a key file or a source cannot be used, or the seed is too large.
    """
    return disk(instance(group, vm, host, session, base_dir, instance_id))


def instance(  # noqa: PLR0917
    group: VmGroup, vm: str, host: str, session: str, base_dir: Path, instance_id: str
) -> Instance:
    """Read the files and fill in the placeholders. Raises `BadInput` as `seed` does."""
    wanted = group.customise
    names = group.vm_names()
    index = names.index(vm) + 1 if vm in names else 1

    def fill(text: str) -> str:
        return expand(text, vm=vm, host=host, session=session, index=index)

    where = f"VM group {group.name!r}, customise"
    files = tuple(
        GuestFile(f.path, _contents(f, f"{where}.file {f.path}", base_dir, fill), f.mode, f.owner) for f in wanted.file
    )
    keys = tuple(k for entry in wanted.authorized_keys for k in _keys(entry, f"{where}.authorized_keys", base_dir))
    return Instance(
        instance_id, fill(wanted.hostname) if wanted.hostname else vm, tuple(dict.fromkeys(keys)), files,
        tuple(fill(command) for command in wanted.run),
    )  # fmt: skip


def disk(instance: Instance) -> bytes:
    """The ISO 9660 disk for an instance. Raises `BadInput` when it is larger than 48 MiB."""
    total = sum(len(file.data) for file in instance.files)
    # user-data and the script both hold the files, in base64
    if total * 8 // 3 > LARGEST:
        raise BadInput(
            f"the files of VM {instance.hostname!r} have {total} bytes; customise.file takes {LARGEST * 3 // 8} in all",
            "put large files into the image, or fetch them with a `run` command",
        )
    return iso(
        VOLUME,
        {
            "user-data": b"#cloud-config\n" + _json(user_data(instance)),
            "meta-data": _json({"instance-id": instance.id, "local-hostname": instance.hostname}),
            "network-config": _json(NETWORK_CONFIG),
            "xenoshell.sh": script(instance).encode(),
        },
    )


#: DHCP on every Ethernet card (network configuration, version 2).
NETWORK_CONFIG: dict[str, Any] = {
    "version": 2,
    "ethernets": {"all": {"match": {"name": "e*"}, "dhcp4": True, "dhcp6": False, "optional": True}},
}


def user_data(instance: Instance) -> dict[str, Any]:
    """The instance as a cloud-config document. It is written as JSON, which is YAML too."""
    short, dot, _ = instance.hostname.partition(".")
    config: dict[str, Any] = {"hostname": short, "preserve_hostname": False, "manage_etc_hosts": "localhost"}
    if dot:
        config |= {"fqdn": instance.hostname, "prefer_fqdn_over_hostname": True}
    if instance.keys:
        # root too: `xenoshell ssh` and scripts work the same way with every image
        config |= {"disable_root": False, "ssh_authorized_keys": list(instance.keys)}
        config["users"] = ["default", {"name": "root", "ssh_authorized_keys": list(instance.keys)}]
    if instance.files:
        config["write_files"] = [
            {
                "path": file.path, "permissions": file.mode.rjust(4, "0"), "owner": file.owner,
                "encoding": "b64", "content": base64.b64encode(file.data).decode(),
                # owners may be users that packages or cloud-init itself make: at the end they exist
                **({"defer": True} if file.owner not in ("root", "root:root") else {}),
            }
            for file in instance.files
        ]  # fmt: skip
    if instance.run:
        config["runcmd"] = list(instance.run)
    return config


def script(instance: Instance) -> str:
    """The instance as a POSIX shell script: ``instance`` prints its id, ``files`` and ``run`` are the two phases.

    A step that fails is said, and the others go on: as with cloud-init, a guest comes up that can be looked into.
    """
    files = [f"set_hostname {quote(instance.hostname)}"]
    if instance.keys:
        keys = "\n".join(instance.keys)
        files.append(f"add_keys <<'xenoshell-keys'\n{keys}\nxenoshell-keys")
    for file in instance.files:
        encoded = base64.encodebytes(file.data).decode()
        arguments = " ".join(map(quote, (file.path, file.mode.rjust(4, "0"), file.owner)))
        files.append(f"put_file {arguments} <<'xenoshell-data'\n{encoded}xenoshell-data")
    run = [f"run_command {number} {quote(command)}" for number, command in enumerate(instance.run, 1)]
    return _SCRIPT.format(
        instance=quote(instance.id), files="\n".join(files), run="\n".join(run or [":"])
    )  # fmt: skip


_SCRIPT = """#!/bin/sh
# Made by xenoshell: what this VM is to become at its first boot. `xenoshell.sh instance|files|run`
failed=0

fail() {{
    echo "xenoshell: $*" >&2
    failed=1
}}

set_hostname() {{
    echo "$1" > /etc/hostname || fail "the host name $1 cannot be written"
    hostname "$1" || fail "the host name $1 cannot be set"
    grep -q "[[:space:]]$1\\$" /etc/hosts 2>/dev/null || echo "127.0.1.1 $1" >> /etc/hosts
}}

add_keys() {{
    mkdir -p /root/.ssh && chmod 700 /root/.ssh && cat >> /root/.ssh/authorized_keys &&
        chmod 600 /root/.ssh/authorized_keys || fail "the SSH keys cannot be added"
}}

put_file() {{
    case "$1" in */*/*) mkdir -p "${{1%/*}}" ;; esac
    base64 -d > "$1.xenoshell" && chmod "$2" "$1.xenoshell" || fail "the file $1 cannot be written"
    chown "$3" "$1.xenoshell" || fail "the file $1 cannot be given to $3"
    mv -f "$1.xenoshell" "$1" || fail "the file $1 cannot be put in place"
}}

run_command() {{
    sh -c "$2" || fail "command $1 ended with status $?: $2"
}}

do_files() {{
{files}
}}

do_run() {{
{run}
}}

case "$1" in
    instance) echo {instance} ;;
    files) do_files ;;
    run) do_run ;;
    *) fail "usage: xenoshell.sh instance|files|run" ;;
esac
exit $failed
"""

_KEY_KINDS = ("ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-")


def _keys(entry: str, where: str, base_dir: Path) -> list[str]:
    """The public keys that one entry of authorized_keys stands for: a key as text, or those of a file."""
    if entry.startswith(_KEY_KINDS) and " " in entry:
        return [entry.strip()]
    path = _local(entry, base_dir)
    text = _read(path, entry, where, "make a key with `ssh-keygen -t ed25519`, or write the public key itself here")
    lines = text.decode("utf-8", "replace").splitlines()
    keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if any("PRIVATE KEY" in key for key in keys):
        raise BadInput(f"{where}: {entry} is a private key", f"name the public one: {entry}.pub")
    if not keys or not all(any(word.startswith(_KEY_KINDS) for word in key.split()) for key in keys):
        raise BadInput(
            f"{where}: {entry} ({path}) holds no SSH public key", "name a file such as ~/.ssh/id_ed25519.pub"
        )
    return keys


def _contents(file: File, where: str, base_dir: Path, fill: Any) -> bytes:
    if file.content is not None:
        filled: str = fill(file.content)
        return filled.encode()
    assert file.source is not None  # the model wants one of the two
    return _read(_local(file.source, base_dir), file.source, where, "correct `source`, or give the text with `content`")


def _local(text: str, base_dir: Path) -> Path:
    return base_dir / Path(text).expanduser()


def _read(path: Path, written: str, where: str, remedy: str) -> bytes:
    """A whole regular file. (A pipe might never end, a device neither; a session file may come from somebody else.)"""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            kind = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(kind):
                what = "Is a directory" if stat.S_ISDIR(kind) else "not a regular file"
                raise BadInput(f"{where}: {written} ({path}): {what}", remedy)
            with open(descriptor, "rb", closefd=False) as file:
                data = file.read(LARGEST + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise BadInput(f"{where}: {written} ({path}): {error.strerror or error}", remedy) from None
    if len(data) > LARGEST:
        raise BadInput(
            f"{where}: {written} ({path}) has more than {LARGEST >> 20} MiB, which no seed can carry",
            "put large files into the image, or fetch them with a `run` command",
        )
    return data


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n"

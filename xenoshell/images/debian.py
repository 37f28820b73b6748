"""The template ``debian``: this machine's Debian or Ubuntu release by mmdebstrap, with systemd, OpenSSH and nginx.

It is a whole disk with a partition and GRUB, and carries its kernel and initrd besides: started with these it is up
sooner. There is no cloud-init in it: the first-boot agent reads the seed. Secrets and identities (SSH host keys,
machine-id) are made at the first boot, never here.
"""

from __future__ import annotations

import copy
import os
import re
import subprocess
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from shlex import quote

from xenoshell.errors import BadInput
from xenoshell.images import agent, bootdisk, filesystem, initramfs
from xenoshell.images.manifest import BOOTS, Manifest
from xenoshell.images.packages import DEBIAN_ARCH, KERNELS, SOURCES_REMEDY, Packages, last_lines, require_apt, unpack
from xenoshell.images.store import ImageStore, check_name
from xenoshell.images.tiny import find_kernel
from xenoshell.images.units import enable
from xenoshell.paths import paths
from xenoshell.wire.causes import Failure

#: The disk's size in bytes; it is sparse, and the file system grows to the VM's own disk at its first boot.
SIZE = 2 << 30
LABEL = "xs-debian"
UUID = "0d0f3c3a-5a0e-5c53-8f3c-6d1f0b7c2a55"
CMDLINE = f"console=ttyS0 root=LABEL={LABEL} rw net.ifnames=0"
BUILD_S = 1800.0

PACKAGES = (
    "ca-certificates", "dbus", "e2fsprogs", "init", "initramfs-tools", "iproute2", "iputils-ping", "less", "nano",
    "netbase", "nginx-light", "openssh-server", "procps", "systemd-resolved", "systemd-sysv", "udev", "zstd",
)  # fmt: skip

UNWANTED_MODULES = (
    "acpi_cpufreq", "aesni_intel", "crc32_pclmul", "crct10dif_pclmul", "ghash_clmulni_intel", "i2c_piix4", "kvm",
    "kvm_amd", "kvm_intel", "pcspkr", "powernow_k8", "psmouse", "sha512_ssse3", "sr_mod", "ata_piix", "floppy",
)  # fmt: skip

FILES: dict[str, tuple[int, str]] = {
    agent.PATH: (0o755, agent.SCRIPT),
    **{f"etc/systemd/system/{name}": (0o644, text) for name, text in agent.UNITS.items()},
    "usr/lib/xenoshell/grow": (
        0o755,
        """#!/bin/sh
# Makes the root partition as large as its disk. The file system follows by x-systemd.growfs.
device=$(readlink -f "$(findmnt -no SOURCE /)")
partition=/sys/class/block/${device##*/}
[ "$(cat "$partition/partition" 2>/dev/null)" = 1 ] || exit 0
disk=$(readlink -f "$partition/..")
start=$(cat "$partition/start")
size=$(($(cat "$disk/size") - start))
[ "$size" -gt "$(cat "$partition/size")" ] || exit 0
[ "$size" -le 4294967295 ] || size=4294967295
# the entry's number of sectors, little-endian, at byte 446 + 12 of the disk
bytes=$(printf '\\\\%03o' $((size & 255)) $((size >> 8 & 255)) $((size >> 16 & 255)) $((size >> 24)))
printf "$bytes" | dd "of=/dev/${disk##*/}" bs=1 seek=458 conv=notrunc 2>/dev/null
resizepart "/dev/${disk##*/}" 1 "$size"
""",
    ),
    "etc/systemd/system/xenoshell-grow.service": (
        0o644,
        """[Unit]
Description=xenoshell: the root partition takes its whole disk
DefaultDependencies=no
After=systemd-remount-fs.service
Before=systemd-growfs@-.service systemd-growfs-root.service local-fs.target shutdown.target
Conflicts=shutdown.target

[Service]
Type=oneshot
ExecStart=/usr/lib/xenoshell/grow
RemainAfterExit=yes

[Install]
WantedBy=local-fs.target
""",
    ),
    "usr/lib/xenoshell/host-keys": (
        0o755,
        """#!/bin/sh
# Makes the SSH host keys at the first boot and shows them on the console, as cloud-init does.
for kind in ed25519 ecdsa; do
    key=/etc/ssh/ssh_host_${kind}_key
    [ -s "$key" ] || ssh-keygen -q -t "$kind" -N '' -f "$key"
done
{
    echo "-----BEGIN SSH HOST KEY KEYS-----"
    cat /etc/ssh/ssh_host_*_key.pub
    echo "-----END SSH HOST KEY KEYS-----"
} > /dev/console
""",
    ),
    "etc/systemd/system/xenoshell-host-keys.service": (
        0o644,
        """[Unit]
Description=xenoshell: SSH host keys
After=xenoshell-files.service
Before=ssh.service

[Service]
Type=oneshot
ExecStart=/usr/lib/xenoshell/host-keys
RemainAfterExit=yes

[Install]
WantedBy=multi-user.target
""",
    ),
    "etc/ssh/sshd_config.d/xenoshell.conf": (
        0o644,
        "HostKey /etc/ssh/ssh_host_ed25519_key\nHostKey /etc/ssh/ssh_host_ecdsa_key\nPasswordAuthentication no\n",
    ),
    "etc/systemd/system/serial-getty@ttyS0.service.d/xenoshell.conf": (
        0o644,
        "[Service]\nExecStart=\nExecStart=-/sbin/agetty --autologin root --noclear --keep-baud 115200 %I $TERM\n",
    ),
    "etc/systemd/network/80-xenoshell.network": (
        0o644,
        "[Match]\nName=e*\n\n[Network]\nDHCP=ipv4\nIPv6AcceptRA=yes\nLinkLocalAddressing=ipv6\n",
    ),
    "etc/nginx/sites-available/default": (
        0o644,
        """server {
    listen 80 default_server;
    listen [::]:80 default_server;
    root /srv/www;
    index index.html;
}
""",
    ),
    "srv/www/index.html": (0o644, "<!doctype html><title>debian</title><p>xenoshell debian\n"),
    # the initramfs has loaded what a VM has devices for; udev would look for these on every emulated boot
    "etc/modprobe.d/xenoshell.conf": (
        0o644,
        "".join(f"blacklist {module}\n" for module in UNWANTED_MODULES),
    ),
    "etc/fstab": (0o644, f"LABEL={LABEL} / ext4 defaults,x-systemd.growfs 0 0\n"),
    "etc/hostname": (0o644, "debian\n"),
    "etc/hosts": (0o644, "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"),
    "etc/machine-id": (0o444, ""),
}
#: Units that are on besides those that packages turn on.
ENABLED = (
    *agent.UNITS, "xenoshell-grow.service", "xenoshell-host-keys.service", "systemd-networkd.service",
    "systemd-resolved.service", "serial-getty@ttyS0.service",
)  # fmt: skip
#: What nobody needs in a VM: each costs seconds of an emulated boot.
MASKED = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer", "e2scrub_reap.service", "getty@tty1.service",
    "modprobe@dm_mod.service", "modprobe@drm.service", "modprobe@efi_pstore.service", "modprobe@loop.service",
    "systemd-firstboot.service", "systemd-pstore.service",
)  # fmt: skip
LEFT_OUT = ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/info/*", "/usr/share/lintian/*")


def build(
    store: ImageStore,
    name: str,
    progress: Callable[[str], None],
    *,
    boot: str = "kernel",
    cache: Path | None = None,
    refresh: bool = False,
) -> Manifest:
    """Build the template of this machine's own release and keep it under ``name``. Takes a minute or two.

    ``boot`` is the image's default: its own ``kernel`` (sooner up) or the ``disk``, by BIOS and GRUB; the disk is the
    same. ``cache`` and ``refresh`` as for ``tiny``. Raises `BadInput` where apt or mmdebstrap are missing, `Failure`
    when packages cannot be had or a tool fails.
    """
    check_name(name)
    if boot not in BOOTS:
        raise BadInput(f"boot: {boot!r} is not one of {', '.join(BOOTS)}")
    require_apt("mmdebstrap")
    directory = cache or paths().cache / "packages"
    packages = Packages(directory, progress, refresh=refresh)
    busybox_deb = packages.fetch(["busybox-static"])["busybox-static"]
    grub = bootdisk.Grub(packages)
    with store.workspace() as work:
        tree = work / "tree"
        owners = bootstrap(tree, directory, work, progress)
        progress("configuring the system")
        kernel, modules = find_kernel(tree)
        unpack(busybox_deb, work / "busybox", lambda path: path.endswith("bin/busybox"))
        chosen = initramfs.Modules(modules).closure(initramfs.ROOT_MODULES, initramfs.GUEST_MODULES)
        initrd = work / "initrd"
        initrd.write_bytes(initramfs.build(next((work / "busybox").rglob("busybox")).read_bytes(), chosen))
        configure(tree, initrd, modules.name)

        progress("making the file system")
        disk = work / "disk"
        size = SIZE - bootdisk.OFFSET
        spec = filesystem.Ext4(size, LABEL, UUID, bootdisk.OFFSET, bytes_per_inode=16384)
        filesystem.make_ext4(tree, disk, spec, owners)
        grub.install(disk, size, f"/vmlinuz {CMDLINE}", "/initrd.img", work)

        progress("storing the image")
        refs = {part: store.add_blob(path) for part, path in (("disk", disk), ("kernel", kernel), ("initrd", initrd))}
    labels = (("kernel", modules.name), ("release", release().get("PRETTY_NAME", "")), ("template", "debian"))
    manifest = Manifest(arch="x86_64", **refs, cmdline=CMDLINE, boot=boot, customise="agent", labels=labels)
    store.put(manifest, name)
    progress(f"{name}: {manifest.id[:12]}, kernel {modules.name}")
    return manifest


def bootstrap(tree: Path, cache: Path, work: Path, progress: Callable[[str], None]) -> dict[str, filesystem.Owner]:
    """Fill ``tree`` with the release that this machine runs, and say whose its files are to be (root's, if not said).

    mmdebstrap makes an archive, so that this needs no root where user namespaces work. Downloaded packages are kept in
    ``cache``. Raises `Failure` with what mmdebstrap said.
    """
    system = release()
    kernel = KERNELS[system.get("ID") == "ubuntu"].format(arch=DEBIAN_ARCH["x86_64"])
    archive = work / "tree.tar"
    sources = work / "sources.list"
    sources.write_text("".join(f"{line}\n" for line in system_sources()))
    archives = cache / "archives"
    archives.mkdir(parents=True, exist_ok=True)
    held = quote(str(archives))
    command = [
        "mmdebstrap", "--variant=minbase", "--format=tar", "--skip=download/empty,essential/unlink",
        f"--include={','.join((*PACKAGES, kernel))}",
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT),
        '--aptopt=Acquire::Languages "none"', '--aptopt=APT::Install-Recommends "false"',
        '--aptopt=Acquire::Retries "2"',
        '--setup-hook=mkdir -p "$1/var/cache/apt/archives"',
        f"--setup-hook=sync-in {held} /var/cache/apt/archives",
        f"--customize-hook=sync-out /var/cache/apt/archives {held}",
        system["VERSION_CODENAME"], str(archive), str(sources),
    ]  # fmt: skip
    # our own initramfs takes the place of the one that initramfs-tools would make now, and make slowly
    environment = {**os.environ, "LC_ALL": "C", "INITRD": "No", "DEBIAN_FRONTEND": "noninteractive"}
    tail: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
        errors="replace", env=environment,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        deadline = threading.Timer(BUILD_S, process.terminate)
        deadline.start()
        try:
            for line in process.stderr:
                tail = [*tail[-20:], line]
                if line.startswith("I: ") and "hook" not in line:
                    progress(f"mmdebstrap: {line[3:].strip()}")
        finally:
            deadline.cancel()
    if process.returncode != 0:
        errors = [line for line in tail if line.startswith("E: ")] or tail
        raise Failure("internal", f"mmdebstrap failed: {last_lines(''.join(errors))}", SOURCES_REMEDY)
    progress("unpacking the system")
    return extract(archive, tree)


def extract(archive: Path, tree: Path) -> dict[str, filesystem.Owner]:
    """Unpack an archive as an ordinary user can: everything becomes the user's, readable and writable to them, device
    nodes are left out (the guest makes its own). Returns what the archive says of owners, permissions, capabilities."""
    owners: dict[str, filesystem.Owner] = {}

    def take(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        path = member.name.removeprefix("./").strip("/")
        if member.ischr() or member.isblk() or member.isfifo():
            return None
        if not member.islnk() and not member.issym():
            capability = member.pax_headers.get("SCHILY.xattr.security.capability", "")
            owners[path] = filesystem.Owner(
                member.uid, member.gid, member.mode & 0o7777, capability.encode("utf-8", "surrogateescape")
            )
        readable = 0o700 if member.isdir() else 0o600
        mode = member.mode & 0o777 | readable
        taken = copy.copy(member)
        taken.uid, taken.gid, taken.uname, taken.gname, taken.mode = os.getuid(), os.getgid(), "", "", mode
        return taken

    tree.mkdir()
    with tarfile.open(archive) as opened:
        # Not by a filter of tarfile's, which Python 3.11.2 (Debian 12) lacks; where there are some, none is wanted.
        opened.extraction_filter = lambda member, _: member
        members = [taken for member in opened if (taken := take(member)) is not None]
        opened.extractall(tree, members)  # noqa: S202 - mmdebstrap made it just now
    archive.unlink()
    return owners


def configure(tree: Path, initrd: Path, version: str) -> None:
    """Turn a bare installation into the template: our files and units, an initrd, no identity."""
    for path, (mode, text) in FILES.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).unlink(missing_ok=True)
        (tree / path).write_text(text)
        (tree / path).chmod(mode)
    (tree / agent.STATE).mkdir(parents=True, exist_ok=True)
    (tree / "root/.ssh").mkdir(mode=0o700, exist_ok=True)
    for key in (tree / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    # named as initramfs-tools would name it, which makes the next one when the kernel is upgraded
    (tree / f"boot/initrd.img-{version}").write_bytes(initrd.read_bytes())
    for link, target in (("vmlinuz", f"boot/vmlinuz-{version}"), ("initrd.img", f"boot/initrd.img-{version}")):
        (tree / link).unlink(missing_ok=True)
        (tree / link).symlink_to(target)
    (tree / "etc/resolv.conf").unlink(missing_ok=True)
    (tree / "etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
    units = tree / "etc/systemd/system"
    for unit in MASKED:
        (units / unit).unlink(missing_ok=True)
        (units / unit).symlink_to("/dev/null")
    enable(tree, ENABLED)


def system_sources() -> list[str]:
    """This machine's package sources for its own release (updates and security too), as lines of a sources.list.

    Raises `BadInput` when it has none."""
    system = release()
    codename = system["VERSION_CODENAME"]
    keyring = Path(f"/usr/share/keyrings/{system.get('ID', 'debian')}-archive-keyring.gpg")
    options = f"[signed-by={keyring}] " if keyring.exists() else ""
    shape = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)"
    command = ["apt-get", "indextargets", "--format", shape, "Created-By: Packages"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout
    found = sorted({tuple(line.split("|")) for line in listed.splitlines() if line.count("|") == 2})
    lines = [
        f"deb {options}{uri} {suite} {component}"
        for uri, suite, component in found
        if re.fullmatch(rf"{re.escape(codename)}(-updates|-security)?", suite) and component in ("main", "universe")
    ]
    if not lines:
        raise BadInput(f"this machine has no package source for its release {codename}", SOURCES_REMEDY)
    return lines


def release() -> dict[str, str]:
    """What /etc/os-release says. Raises `BadInput` when it names no release."""
    try:
        text = Path("/etc/os-release").read_text()
    except OSError:
        text = ""
    fields = {key: value.strip("\"'") for key, value in re.findall(r"^([A-Z_]+)=(.*)$", text, re.MULTILINE)}
    if "VERSION_CODENAME" not in fields:
        raise BadInput("this machine is not of a Debian or Ubuntu release", "build the template on one that is")
    return fields

"""The template ``tiny``: a distribution's kernel, BusyBox, a web server and an SSH server. Built in seconds.

The page it serves is /srv/www/index.html; root's shell is on the serial console; SSH takes keys only.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from xenoshell.errors import BadInput
from xenoshell.images import agent, bootdisk, filesystem, initramfs
from xenoshell.images.manifest import BOOTS, Manifest
from xenoshell.images.packages import Packages, require_apt, unpack
from xenoshell.images.store import ImageStore, check_name
from xenoshell.paths import paths
from xenoshell.wire.causes import Failure

#: The disk's size in bytes. It is sparse: the image's own few MB are all that is stored or sent.
SIZE = 2 << 30
LABEL = "xs-tiny"
UUID = "7b1d6a52-0c3e-5b6e-9d0a-3a5f2d9c4e11"
CMDLINE = f"console=ttyS0 root=LABEL={LABEL} rw"

FILES: dict[str, tuple[int, str]] = {
    "etc/inittab": (
        0o644,
        """::sysinit:/etc/init.d/boot
ttyS0::respawn:/sbin/console
::ctrlaltdel:/sbin/reboot
::shutdown:/etc/init.d/stop
""",
    ),
    "etc/init.d/boot": (
        0o755,
        f"""#!/bin/sh
# Everything between the kernel and the prompt.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
mkdir -p /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=0620,nosuid,noexec devpts /dev/pts
mount -t tmpfs -o mode=0755,nosuid,nodev tmpfs /run
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs /tmp
acpid -l /dev/null
ip link set lo up
/{agent.PATH} files
hostname -F /etc/hostname
for card in /sys/class/net/*; do
    card=${{card##*/}}
    if [ "$card" != lo ]; then
        ip link set "$card" up
        udhcpc -i "$card" -s /etc/udhcpc/default.script -b -S -t 4 -T 1 -x "hostname:$(hostname)" > /dev/null
    fi
done
/{agent.PATH} run
httpd -p 80 -h /srv/www
/etc/init.d/ssh
""",
    ),
    "etc/init.d/ssh": (
        0o755,
        """#!/bin/sh
# Makes the host key at the first boot, shows it on the console (as cloud-init does), starts the server: keys only.
key=/etc/dropbear/host_key
if [ ! -s "$key" ]; then
    dropbearkey -t ed25519 -f "$key.new" > /dev/null 2>&1 && mv "$key.new" "$key" && sync
fi
echo "-----BEGIN SSH HOST KEY KEYS-----
$(dropbearkey -y -f "$key" | grep "^ssh-")
-----END SSH HOST KEY KEYS-----" > /dev/console
dropbear -s -r "$key" -p 22
""",
    ),
    "etc/init.d/stop": (
        0o755,
        """#!/bin/sh
sync
""",
    ),
    "etc/acpi/PWRF/00000080": (
        0o755,
        """#!/bin/sh
# The power button: a moment for everybody to finish, then off.
kill -TERM -1
usleep 300000
sync
mount -o remount,ro /
poweroff -f
""",
    ),
    "sbin/console": (
        0o755,
        """#!/bin/sh
export HOME=/root TERM=${TERM:-vt100} PATH=/usr/sbin:/usr/bin:/sbin:/bin
cat /etc/issue
echo "$(hostname) login: root (automatic login)"
cd /root
exec /bin/sh -l
""",
    ),
    "etc/udhcpc/default.script": (
        0o755,
        """#!/bin/sh
# Called by udhcpc with what the DHCP server said.
case "$1" in
    deconfig) ip addr flush dev "$interface" ;;
    bound | renew)
        ip addr replace "$ip/${mask:-24}" dev "$interface"
        for gateway in $router; do
            ip route replace default via "$gateway" dev "$interface" && break
        done
        for server in $dns; do echo "nameserver $server"; done > /etc/resolv.conf
        ;;
esac
""",
    ),
    "etc/passwd": (0o644, "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
    "etc/shadow": (0o600, "root:*:20000:0:99999:7:::\nnobody:*:20000:0:99999:7:::\n"),
    "etc/group": (0o644, "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"),
    "etc/shells": (0o644, "/bin/sh\n"),
    "etc/hostname": (0o644, "tiny\n"),
    "etc/hosts": (0o644, "127.0.0.1 localhost\n::1 localhost\n"),
    "etc/profile": (0o644, "export PATH=/usr/sbin:/usr/bin:/sbin:/bin PS1='\\h:\\w# '\n"),
    "etc/issue": (0o644, "\nxenoshell tiny\n"),
    "etc/os-release": (0o644, 'ID=xenoshell-tiny\nNAME="xenoshell tiny"\nPRETTY_NAME="xenoshell tiny"\n'),
    "srv/www/index.html": (0o644, "<!doctype html><title>tiny</title><p>xenoshell tiny\n"),
    agent.PATH: (0o755, agent.SCRIPT),
}
DIRECTORIES = (
    "bin", "boot", "dev", "etc/dropbear", "mnt", "proc", "root/.ssh", "run", "sbin", "sys", "tmp", "usr/bin",
    "usr/sbin", agent.STATE, "var/log",
)  # fmt: skip


def build(
    store: ImageStore,
    name: str,
    progress: Callable[[str], None],
    *,
    boot: str = "kernel",
    cache: Path | None = None,
    refresh: bool = False,
) -> Manifest:
    """Build the template and keep it under ``name``.

    ``boot``: ``kernel`` (a bare file system, started with its own kernel) or ``disk`` (a partitioned disk with GRUB,
    started by its BIOS). ``cache`` is where packages are kept; ``refresh`` asks the distribution for newer ones.
    Raises `BadInput` on a machine without apt, `Failure` when packages cannot be had or a tool fails.
    """
    check_name(name)
    if boot not in BOOTS:
        raise BadInput(f"boot: {boot!r} is not one of {', '.join(BOOTS)}")
    require_apt()
    packages = Packages(cache or paths().cache / "packages", progress, refresh=refresh)
    kernel_debs = packages.fetch_kernel()
    busybox_deb = packages.fetch(["busybox-static"])["busybox-static"]
    ssh_debs = packages.fetch_closure(["dropbear-bin"])
    grub = bootdisk.Grub(packages) if boot == "disk" else None
    with store.workspace() as work:
        progress("unpacking the kernel")
        for deb in kernel_debs.values():
            unpack(deb, work / "kernel")
        kernel, modules = find_kernel(work / "kernel")
        unpack(busybox_deb, work / "busybox", lambda path: path.endswith("bin/busybox"))
        busybox = next((work / "busybox").rglob("busybox"))

        initrd = work / "initrd"
        chosen = initramfs.Modules(modules).closure(initramfs.ROOT_MODULES, initramfs.GUEST_MODULES)
        initrd.write_bytes(initramfs.build(busybox.read_bytes(), chosen))

        progress("making the file system")
        tree = work / "tree"
        populate(tree, busybox)
        add_ssh(tree, ssh_debs, work)
        set_modes(tree)
        if grub is not None:
            for source, name_there in ((kernel, "vmlinuz"), (initrd, "initrd")):
                shutil.copyfile(source, tree / "boot" / name_there)
                (tree / "boot" / name_there).chmod(0o644)
        disk = work / "disk"
        offset = bootdisk.OFFSET if grub else 0
        spec = filesystem.Ext4(SIZE - offset, LABEL, UUID, offset)
        filesystem.make_ext4(tree, disk, spec)
        if grub is not None:
            grub.install(disk, SIZE - offset, f"/boot/vmlinuz {CMDLINE}", "/boot/initrd", work)

        progress("storing the image")
        refs = {part: store.add_blob(path) for part, path in (("disk", disk), ("kernel", kernel), ("initrd", initrd))}
    manifest = Manifest(
        arch="x86_64",
        **refs,
        cmdline=CMDLINE,
        boot=boot,
        customise="agent",
        labels=(("kernel", modules.name), ("template", "tiny")),
    )
    store.put(manifest, name)
    progress(f"{name}: {manifest.id[:12]}, kernel {modules.name}")
    return manifest


def find_kernel(tree: Path) -> tuple[Path, Path]:
    """The kernel image and the directory of its modules, in unpacked kernel packages."""
    kernels = sorted(tree.glob("boot/vmlinuz-*"))
    for kernel in kernels:
        version = kernel.name.removeprefix("vmlinuz-")
        for modules in (tree / "lib/modules" / version, tree / "usr/lib/modules" / version):
            if modules.is_dir():
                return kernel, modules
    found = ", ".join(k.name for k in kernels) or "no kernel"
    raise Failure("not-found", f"the kernel packages hold {found}, but no modules for it", "choose another kernel")


def populate(tree: Path, busybox: Path) -> None:
    """Everything of the root file system but the SSH server."""
    for directory in DIRECTORIES:
        (tree / directory).mkdir(parents=True, exist_ok=True)
    for path, (mode, text) in FILES.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(text)
        (tree / path).chmod(mode)
    shutil.copyfile(busybox, tree / "bin/busybox")
    (tree / "bin/busybox").chmod(0o755)
    listed = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True, timeout=30)
    for applet in listed.stdout.split():
        if applet != "busybox" and re.fullmatch(r"[\w.\[\]-]+", applet):
            (tree / "bin" / applet).symlink_to("busybox")
    for applet in ("init", "poweroff", "reboot", "halt"):
        (tree / "sbin" / applet).symlink_to("../bin/busybox")


def set_modes(tree: Path) -> None:
    """The modes of directories, whatever the builder's umask made them."""
    for directory in (tree, *(path for path in tree.rglob("*") if path.is_dir() and not path.is_symlink())):
        directory.chmod(0o755)
    (tree / "tmp").chmod(0o1777)
    for private in ("root", "root/.ssh", "etc/dropbear"):
        (tree / private).chmod(0o700)


def add_ssh(tree: Path, debs: dict[str, Path], work: Path) -> None:
    """Dropbear with the libraries it needs."""
    unpacked = work / "ssh"
    for deb in debs.values():
        unpack(deb, unpacked, lambda p: re.search(r"\.so(\.|$)|bin/dropbear", p) is not None)
    programs = [p for p in (unpacked / "usr/sbin/dropbear", unpacked / "usr/bin/dropbearkey") if p.exists()]
    loaders = sorted(p for p in unpacked.rglob("ld-linux*.so.*") if not p.is_symlink())
    if len(programs) != 2 or not loaders:
        raise Failure("not-found", f"the packages {', '.join(debs)} hold no complete SSH server", "")
    directories = sorted({str(p.parent) for p in unpacked.rglob("*.so*")})
    needed: dict[str, Path] = {}
    for program in programs:
        (tree / program.relative_to(unpacked)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(program, tree / program.relative_to(unpacked))
        (tree / program.relative_to(unpacked)).chmod(0o755)
        command: list[str | Path] = [
            loaders[0],
            "--inhibit-cache",
            "--library-path",
            ":".join(directories),
            "--list",
            program,
        ]
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
        needed |= {m[1]: Path(m[2]) for m in re.finditer(r"^\s*(\S+) => (\S+)", listed.stdout, re.MULTILINE)}
    libraries = tree / "lib"
    libraries.mkdir(exist_ok=True)
    for library, file in needed.items():
        shutil.copyfile(file, libraries / Path(library).name)
        (libraries / Path(library).name).chmod(0o755)
    (tree / "lib64").mkdir(exist_ok=True)
    shutil.copyfile(loaders[0], tree / "lib64" / "ld-linux-x86-64.so.2")
    (tree / "lib64" / "ld-linux-x86-64.so.2").chmod(0o755)

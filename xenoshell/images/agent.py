"""The first-boot agent of templates that have no cloud-init: runs the seed disk's script, once per instance.

The seed (see `xenoshell.images.seed`) is an ISO 9660 disk with the volume name ``cidata``; its ``xenoshell.sh`` does
the same as its ``user-data``. Whatever goes wrong is said on the console and never stops the boot.
"""

from __future__ import annotations

#: Where the agent lives in a guest, and where it remembers what it has done.
PATH = "usr/lib/xenoshell/agent"
STATE = "var/lib/xenoshell"

#: ``agent files``: host name, keys, files. ``agent run``: the commands, once the network is up.
SCRIPT = rf"""#!/bin/sh
# Applies what the xenoshell seed disk says: `agent files` early, `agent run` when the network is up; once per instance.
phase=$1
state=/{STATE}
mnt=/run/xenoshell-seed

find_seed() {{
    for block in /sys/class/block/*; do
        name=${{block##*/}}
        case "$name" in loop* | ram* | zram* | dm-* | md* | fd*) continue ;; esac
        # the volume name of an ISO 9660 file system: 32 characters at byte 32808
        label=$(dd "if=/dev/$name" bs=8 skip=4101 count=4 2>/dev/null | tr -d '\0' | tr 'A-Z' 'a-z')
        label=${{label%% *}}
        if [ "$label" = cidata ]; then
            echo "/dev/$name"
            return 0
        fi
    done
    return 1
}}

seed=$(find_seed) || exit 0
mkdir -p "$mnt" "$state"
if ! mount -t iso9660 -o ro "$seed" "$mnt"; then
    echo "xenoshell: the seed disk $seed cannot be mounted; nothing is customised"
    exit 0
fi
script=$mnt/xenoshell.sh
if [ ! -r "$script" ]; then
    echo "xenoshell: the seed disk $seed has no xenoshell.sh; nothing is customised"
else
    instance=$(sh "$script" instance)
    if [ "$(cat "$state/$phase" 2>/dev/null)" != "$instance" ]; then
        sh "$script" "$phase" || echo "xenoshell: customisation ($phase) ended with status $?"
        echo "$instance" > "$state/$phase.new" && mv "$state/$phase.new" "$state/$phase" && sync
    fi
fi
umount "$mnt"
exit 0
"""

#: systemd units of the two phases.
UNITS = {
    "xenoshell-files.service": f"""[Unit]
Description=xenoshell: host name, keys and files of this instance
DefaultDependencies=no
After=local-fs.target systemd-remount-fs.service
Before=sysinit.target network-pre.target ssh.service nginx.service
Conflicts=shutdown.target

[Service]
Type=oneshot
ExecStart=/{PATH} files
RemainAfterExit=yes
StandardOutput=journal+console
StandardError=journal+console

[Install]
WantedBy=sysinit.target
""",
    "xenoshell-run.service": f"""[Unit]
Description=xenoshell: the commands of this instance
Wants=network-online.target
After=network-online.target multi-user.target xenoshell-files.service

[Service]
Type=oneshot
ExecStart=/{PATH} run
RemainAfterExit=yes
TimeoutStartSec=infinity
StandardOutput=journal+console
StandardError=journal+console

[Install]
WantedBy=default.target
""",
}

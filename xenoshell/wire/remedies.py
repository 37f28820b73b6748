"""Why something failed: a closed list of words, one for each reason that a person would act on differently, and what to
do about each. Apart from `causes`, since hosts tell the word alone and their first answer should not wait for the rest.
"""

from __future__ import annotations

from typing import Dict

#: Each cause and the remedy that is shown when whoever raised it knows no better one.
REMEDIES: Dict[str, str] = {
    # reaching the host
    "unreachable": "check the address, the network and that sshd runs there: `xenoshell hosts check NAME`",
    "auth-failed": "check this host's user and key in ~/.ssh/config or hosts.toml, and that your agent holds the key",
    "host-key-unknown": "compare the fingerprint with the owner's, then pin it with `xenoshell hosts trust NAME`",
    "host-key-changed": "somebody may be in between: ask the owner; only then `xenoshell hosts trust NAME --replace`",
    "connection-lost": "the VMs go on without the connection; run `xenoshell resume SESSION` when the host is back",
    "timeout": "the host did not answer in time; see `xenoshell hosts check NAME`, then `xenoshell resume SESSION`",
    "no-python": "install python3 (3.9 or newer) on the host",
    "protocol": "see the bytes shown: does a login script print something, or do the versions differ?",
    # what the host says
    "bad-request": "this is a defect of xenoshell; please report it with the message",
    "busy": "another xenoshell is at the same work on this host; wait for it or stop it, then run again",
    "not-found": "it is gone from the host; run `xenoshell deploy FILE` to create it again",
    "no-hypervisor": "install QEMU on the host (Debian, Ubuntu: qemu-system-x86 and qemu-utils)",
    "no-acceleration": "KVM was asked for and does not work there; use --accel auto or tcg",
    "no-memory": "choose a smaller memory or another host",
    "disk-full": "free space on the host (or set state_dir for it in hosts.toml), then `xenoshell resume SESSION`",
    "port-in-use": "leave `host` out of the forward so that a free port is chosen, or choose another",
    "corrupt-segment": "it is sent again; if it recurs, the link or the host's disk is bad",
    "corrupt-image": "the image itself is damaged: build it again",
    "qemu-failed": "see the QEMU message above and `xenoshell logs SESSION/VM`",
    "internal": "this is a defect of xenoshell; please report it with the message",
    # what became of a guest
    "guest-panic": "see `xenoshell logs SESSION/VM`",
    "guest-poweroff": "the guest shut itself down; `xenoshell start SESSION/VM` boots it again",
    "killed": "QEMU was killed on the host (out of memory?); `xenoshell start SESSION/VM` boots it again",
    "stopped": "it was asked to stop; `xenoshell start SESSION/VM` boots it again",
    "lease-expired": "`xenoshell start SESSION/VM` boots it again; `xenoshell renew SESSION` in time prevents this",
    "budget-spent": "raise budget.max_total in the session file and deploy again",
    "host-rebooted": "`xenoshell start SESSION/VM` boots it again",
    "ready-timeout": "the guest runs but does not answer: see `xenoshell logs SESSION/VM` and the [vm.ready] section",
    # before anything is done
    "no-placement": "loosen `where`, lower `count`, or add hosts",
    "over-budget": "raise the budget, lower the resources or the count, or choose cheaper hosts",
    "image-missing": "build it first: `xenoshell images build tiny`; `xenoshell images list` shows what there is",
    "cancelled": "run `xenoshell resume SESSION` to go on",
}


def remedy(cause: str) -> str:
    """The standard remedy for ``cause``. Raises `KeyError` for a word that is not in the list."""
    return REMEDIES[cause]

"""Quotes, plans and the table at the end of a deployment, on the screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..console.clean import clean
from ..units import human_duration, human_size
from .common import Reason, count, show_reasons
from .output import Cell, Output

if TYPE_CHECKING:
    from ..deploy.plan import Plan
    from ..deploy.quote import Quote
    from ..deploy.summary import Row


def show_quote(out: Output, quote: Quote) -> None:
    """What a session would cost, host by host."""
    from ..deploy.money import show

    rows = []
    for host in quote.hosts:
        sent = human_size(host.transfer_bytes)
        if host.transfer_cost:
            sent += f", {show(host.transfer_cost, host.currency)}"
        for index, vm in enumerate(host.vms):
            rows.append(
                (
                    vm.vm,
                    host.host,
                    host.place,
                    Cell(str(vm.vcpus), right=True),
                    Cell(human_size(vm.memory), right=True),
                    Cell(human_size(vm.disk) if vm.disk else "-", right=True),
                    Cell(show(vm.per_hour, vm.currency), right=True),
                    "" if index else sent if host.transfer_bytes else "held there",
                )
            )
    out.table(
        ("VM", "HOST", "PLACE", "VCPUS", "MEMORY", "DISK", "PER HOUR", "IMAGE TRANSFER"),
        rows,
        spare=("PLACE", "VCPUS", "DISK", "MEMORY"),
    )
    out.data()
    once = f"; image transfer, once: {quote.transfer}" if quote.transfer.each else ""
    out.prose(f"total per hour: {quote.per_hour}{once}")
    if quote.lease_s is not None and quote.lease_cost is not None:
        out.prose(f"until the lease ends, {human_duration(quote.lease_s)}: {quote.lease_cost}")
    if quote.hours is not None:
        out.prose(f"the budget pays for {human_duration(quote.budget_s)} of all VMs, then the hosts stop them")
    if quote.objection is not None:
        out.data(out.paint(f"refused: {clean(quote.objection.message)}", "bad"))
    for refusal in quote.refusals:
        out.detail(f"{clean(refusal.host)} for {refusal.group}: {clean('; '.join(refusal.reasons))}")
    for note in quote.notes:
        out.note(f"note: {clean(note)}")


def quote_line(quote: Quote) -> str:
    """The quote in one line, before a deployment."""
    lease = f", {quote.lease_cost} until the lease ends" if quote.lease_cost is not None else ""
    vms = sum(len(host.vms) for host in quote.hosts)
    size = sum(host.transfer_bytes for host in quote.hosts)
    images = f", {human_size(size)} at most to send" if size else ""
    return f"{count(vms, 'VM')} on {count(len(quote.hosts), 'host')}: {quote.per_hour} an hour{lease}{images}"


def show_plan(out: Output, plan: Plan) -> None:
    """What a deployment would do, host by host."""
    rows: list[tuple[Cell | str, ...]] = []
    for host in plan.hosts:
        blobs = ", ".join(f"{b.what} {human_size(b.to_send)}" for b in host.blobs) or "nothing"
        for index, vm in enumerate(host.vms):
            role = {"create": "good", "start": "good", "replace": "bad", "destroy": "bad"}.get(vm.action, "dim")
            text = str(vm).partition(": ")[2]
            rows.append((host.host, "" if index else blobs, vm.vm, Cell(vm.action, role), clean(text)))
        if not host.vms:
            rows.append((host.host, blobs, "", "", ""))
    only_new = all(vm.action == "create" for host in plan.hosts for vm in host.vms)
    out.table(
        ("HOST", "TO SEND", "VM", "ACTION", "WHICH MEANS"), rows, spare=("WHICH MEANS",) if only_new else ("TO SEND",)
    )
    out.data()
    effort = ""
    if plan.count("create") + plan.count("replace") + plan.count("start"):
        sent = f"{human_size(plan.bytes_to_send)} to send" if plan.bytes_to_send else "nothing to send"
        effort = f"; {sent}; about {human_duration(plan.seconds)} until the last VM boots"
    out.prose(f"{plan.blast_radius}{effort}; {plan.quote.per_hour} an hour")
    if blind := [host.host for host in plan.hosts if not host.asked]:
        out.note(f"note: not asked, so from what is known here: {', '.join(blind)}")


def show_rows(out: Output, rows: Sequence[Row], session: str) -> None:
    """The end of a deployment of ``session``: one row for each VM, failures with what to do below."""
    all_ready = ("STATE",) if all(row.state == "ready" for row in rows) else ()
    out.table(
        ("VM", "HOST", "PLACE", "PRICE", "TRANSFER", "BOOT", "READY", "STATE", "ADDRESS"),
        without_empty=True,
        spare=(*all_ready, "PLACE", "BOOT", "TRANSFER", "PRICE", "READY"),
        rows=[
            (
                row.vm,
                row.host,
                row.place.partition(",")[0],  # the city; `hosts list` has the rest
                Cell(row.price, right=True),
                Cell(
                    f"{human_size(row.transfer_bytes)} in {human_duration(row.transfer_s)}"
                    if row.transfer_s is not None and row.transfer_bytes
                    else "held there" * row.image_there,
                    right=True,
                ),
                Cell("" if row.boot_s is None else human_duration(row.boot_s), right=True),
                Cell("" if row.ready_s is None else human_duration(row.ready_s), right=True),
                Cell(row.state, "good" if row.state == "ready" else "warn" if row.state == "unknown" else "bad"),
                row.address,
            )
            for row in rows
        ],
    )
    show_reasons(
        out,
        [
            Reason(
                row.vm if row.message.startswith(row.host) else f"{row.vm} on {row.host}",
                session,
                row.vm,
                row.host,
                f"{row.message} [{row.cause}]",
                row.remedy,
            )
            for row in rows
            if row.cause
        ],
    )

"""What is found in a ledger's place, as people and programs read it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tollkeeper.cli.render import grid, many, safe, size_of

if TYPE_CHECKING:
    from tollkeeper.stores import Difference, Size
    from tollkeeper.stores.redis.audit import Audit
    from tollkeeper.stores.redis.check import Findings
    from tollkeeper.stores.redis.survey import Survey


def survey_table(found: Survey) -> RenderableType:
    """Servers, gateways and journals, a table each; then what is held, what is warned of, and what needs attention."""
    holds = many(found.holds, "hold") + (f", {found.overdue:,} of them overdue" if found.overdue else "")
    parts: list[RenderableType] = [
        Text.assemble((found.place, "bold"), f"  epoch {found.epoch or 'none'}"), _servers(found), Text(),
    ]  # fmt: skip
    pids = {each.id: "–" if each.pid is None else str(each.pid) for each in found.journals}
    if found.members:
        gateways = _grid("gateway", state=False, silent=True, process=True)
        for member in found.members:
            silent = f"{member.silent_ms / 1000:.1f} s"
            gateways.add_row(member.journal, safe(member.state), silent, pids.get(member.journal, "–"))
        parts += [gateways, Text()]
    journals = _grid("journal", entries=True, waiting=True, process=True)
    for each in found.journals:
        figures = ("?", "?") if each.error is not None else (f"{each.rows:,}", f"{each.waiting:,}")
        journals.add_row(each.id, *figures, pids[each.id])
    parts += [journals, Text()] if found.journals else [Text("No journals on this host.")]
    parts.append(
        Text(f"{many(found.projects, 'project')}, {holds}, {many(len(found.elsewhere), 'journal')} of other hosts")
    )
    parts += [Text(f"{name}: {line}", "dim") for name, each in found.servers.items() for line in each.warnings]
    parts += [Text(f"! {safe(line)}", "bold red") for line in found.attention]
    return Group(*parts, *([] if found.attention else [Text("Nothing needs attention.", "green")]))


def _grid(first: str, **right: bool) -> Table:
    drawn = grid()
    drawn.add_column(first, no_wrap=True)
    for name, is_right in right.items():
        drawn.add_column(name, justify="right" if is_right else "left", no_wrap=True)
    return drawn


def _servers(found: Survey) -> Table:
    drawn = _grid("server", version=False, memory=False, keeps=False)
    for name, each in found.servers.items():
        version = f"{each.server or '?'} {each.version or '?'}"
        drawn.add_row(name, version, each.policy or "?", _keeps(each))
    return drawn


def _keeps(found: Findings) -> str:
    if found.aof is None:
        return "?"
    if found.aof:
        return f"append-only file, {found.fsync or '?'}"
    return "snapshots" if found.snapshots else "nothing"


def survey_object(found: Survey) -> dict[str, Any]:
    """The same as one JSON object."""
    return {
        "place": found.place, "epoch": found.epoch, "projects": found.projects, "holds": found.holds,
        "overdue": found.overdue,
        "servers": [
            {"name": name, "server": each.server, "version": each.version, "policy": each.policy,
             "append_only": each.aof, "fsync": each.fsync, "errors": each.errors, "warnings": each.warnings}
            for name, each in found.servers.items()
        ],
        "gateways": [
            {"journal": each.journal, "state": each.state, "silent_ms": each.silent_ms, "alive": each.alive}
            for each in found.members
        ],
        "journals": [
            {"id": each.id, "process": each.pid, "entries": each.rows, "waiting": each.waiting, "error": each.error}
            for each in found.journals
        ],
        "elsewhere": found.elsewhere, "attention": found.attention,
    }  # fmt: skip


def verified_lines(size: Size, wrong: Sequence[Difference], compared: Audit | None) -> list[str]:
    """Each difference, then what was compared."""
    lines = [safe(f"{each.what} {each.key}: stored {each.stored}, its entries say {each.entries}") for each in wrong]
    sums, entries = size_of(size)
    checked = f"{sums} over {entries}"
    if compared is not None:
        checked += f"; {many(compared.entries, 'entry', 'entries')} of {many(compared.journals, 'journal')}"
    lines.append(f"{many(len(wrong), 'difference')} in {checked}" if wrong else f"{checked}: all agree")
    if compared is not None and compared.waiting:
        lines.append(f"{compared.waiting:,} more wait in journals and are not in Redis yet")
    return lines


def verified_object(size: Size, wrong: Sequence[Difference], compared: Audit | None) -> dict[str, Any]:
    """The same as one JSON object."""
    journals = None
    if compared is not None:
        journals = {"journals": compared.journals, "entries": compared.entries, "waiting": compared.waiting}
    return {**size._asdict(), "journals": journals, "differences": [each._asdict() for each in wrong]}

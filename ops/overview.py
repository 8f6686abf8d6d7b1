"""What the hub knows of its region at one moment: members, counters, roster, witnesses, alarms, training.

Read from the reports of `federation.reporting`, the roster and the hub's own log, and shaped for the page and for
JSON. Holds no patient and no user name, because nothing it reads has any: alarms are shown by kind and node.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from consent.errors import AccordError, Unavailable
from consent.signed import Json
from consent.vocabulary import EventKind
from federation.authority import Authority
from federation.members import Members
from federation.reporting import ALARM_COUNTS, PEOPLE_COUNTS, STOCK_COUNTS, MemberState, Reports
from federation.roster import HUB, Member, Standing
from federation.witnessing import Witnessing
from node.audit.event import Entry
from node.audit.log import Log
from node.audit.note import Note, Verifier

if TYPE_CHECKING:
    from learning.runs import Runs
    from learning.runtables import Run

RECENT_ALARMS = 8
RECENT_RUNS = 5
ALARMS = (
    EventKind.WITNESS_ALARMED,
    EventKind.PEER_REFUSED,
    EventKind.ROSTER_REFUSED,
    EventKind.INTEGRITY_FAILED,
)
"""What the hub's own log alarms about. None of these concerns a patient."""


@dataclass(frozen=True)
class Tally:
    """A sum over members. `untold` members said: some, but fewer than five (reporting.K_FLOOR)."""

    told: int
    untold: int

    @property
    def text(self) -> str:
        """`12`, or `12+` when something was not told."""
        return f"{self.told}+" if self.untold else str(self.told)


@dataclass(frozen=True)
class MemberView:
    """A hospital as the hub sees it now.

    `cosigned_by` are the witnesses on the checkpoint it reported, none when it was fresh; `cosigned_size` is how far
    the hub itself has vouched for its log.
    """

    member: Member
    standing: str
    software: str
    roster: int | None
    roster_current: bool
    log_size: int | None
    log_sound: bool
    cosigned_by: tuple[str, ...]
    cosigned_size: int
    reported: datetime | None
    alarms: Mapping[str, int]
    counts: Mapping[str, int | None]

    def to_json(self) -> Json:
        return {
            "id": self.member.id,
            "name": self.member.name,
            "standing": self.standing,
            "software": self.software,
            "roster_version": self.roster,
            "roster_current": self.roster_current,
            "log_size": self.log_size,
            "log_sound": self.log_sound,
            "cosigned_by": list(self.cosigned_by),
            "cosigned_size": self.cosigned_size,
            "reported": self.reported.isoformat() if self.reported else None,
            "alarms": dict(self.alarms),
            "counts": dict(self.counts),
        }


@dataclass(frozen=True)
class Alarm:
    """One alarm of the hub's own log."""

    at: datetime
    kind: EventKind
    node: str

    def to_json(self) -> Json:
        return {"at": self.at.isoformat(), "kind": self.kind.value, "node": self.node}


@dataclass(frozen=True)
class Overview:
    """The region at one moment. `fault` says why no member is listed, when that is so."""

    region: str
    roster: int
    roster_expires: datetime | None
    draft_signatures: int
    members: tuple[MemberView, ...]
    totals: Mapping[str, Tally]
    log_size: int
    witnesses: Mapping[str, int]
    alarms: tuple[Alarm, ...]
    runs: tuple[Run, ...]
    fault: AccordError | None = None

    @property
    def up(self) -> int:
        return sum(view.standing == "up" for view in self.members)

    @property
    def silent(self) -> int:
        return sum(view.standing == "silent" for view in self.members)

    def to_json(self) -> Json:
        """The same, for machines; counts of null mean: some, but fewer than five."""
        return {
            "region": self.region,
            "roster": {
                "version": self.roster,
                "expires": self.roster_expires.isoformat() if self.roster_expires else None,
                "draft_signatures": self.draft_signatures,
            },
            "members": [view.to_json() for view in self.members],
            "totals": {name: {"told": one.told, "untold": one.untold} for name, one in self.totals.items()},
            "log": {"size": self.log_size, "cosigned_by": dict(self.witnesses)},
            "alarms": [alarm.to_json() for alarm in self.alarms],
            "runs": [_run_json(run) for run in self.runs],
            "fault": str(self.fault) if self.fault else None,
        }


async def look(
    *,
    members: Members,
    authority: Authority,
    reports: Reports,
    witnessing: Witnessing,
    runs: Runs | None,
    log: Log,
) -> Overview:
    """Everything the hub's dashboard shows, as of now."""
    await members.load()
    fault: AccordError | None = None
    states: Sequence[MemberState] = ()
    try:
        states = [state for state in await reports.members() if HUB not in state.member.roles]
    except Unavailable as error:
        fault = error
    views = [_view(state, members, await witnessing.cosigned_size(state.member)) for state in states]
    return Overview(
        region=members.anchor.region if members.anchor else "",
        roster=members.version,
        roster_expires=members.expires,
        draft_signatures=len(await authority.draft()),
        members=tuple(views),
        totals=_totals(view.counts for view in views),
        log_size=await log.size(),
        witnesses=witnessing.vouched(),
        alarms=await _alarms(log),
        runs=tuple(await runs.runs())[:RECENT_RUNS] if runs else (),
        fault=fault,
    )


def _view(state: MemberState, members: Members, cosigned_size: int) -> MemberView:
    member, report = state.member, state.report
    listed = [other for other in members.current().members if other.id != member.id]
    return MemberView(
        member=member,
        standing=_standing(state),
        software=report.software if report else "",
        roster=report.roster if report else None,
        roster_current=report is not None and report.roster >= members.version,
        log_size=state.log_size,
        log_sound=report is None or report.log_sound,
        cosigned_by=_cosigners(report.checkpoint, listed) if report else (),
        cosigned_size=cosigned_size,
        reported=state.received,
        alarms={name: report.counts.get(name) or 0 for name in ALARM_COUNTS} if report else {},
        counts={name: report.counts.get(name, 0) for name in (*PEOPLE_COUNTS, *STOCK_COUNTS)}
        if report
        else {},
    )


def _standing(state: MemberState) -> str:
    if state.member.status is Standing.SUSPENDED:
        return "suspended"
    if state.report is None:
        return "new"
    return "silent" if state.silent else "up"


def _totals(counts: Iterable[Mapping[str, int | None]]) -> dict[str, Tally]:
    told: Counter[str] = Counter()
    untold: Counter[str] = Counter()
    for member in counts:
        for name, count in member.items():
            told[name] += count or 0
            untold[name] += count is None
    return {name: Tally(told[name], untold[name]) for name in (*PEOPLE_COUNTS, *STOCK_COUNTS)}


def _cosigners(note: str, members: Iterable[Member]) -> tuple[str, ...]:
    return _vouched(note, tuple((member.id, member.log_vkey) for member in members)) if note else ()


@lru_cache(maxsize=4096)
def _vouched(note: str, keys: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    """Ids of the members whose cosignature on this checkpoint holds. A note never changes, so once is enough."""
    verifiers = {Verifier.from_vkey(vkey).as_cosigner(): member for member, vkey in keys}
    try:
        vouched = Note.parse(note).verify(verifiers)
    except AccordError:
        return ()
    return tuple(verifiers[one.verifier] for one in vouched)


async def _alarms(log: Log) -> tuple[Alarm, ...]:
    found: list[Entry] = []
    for kind in ALARMS:
        found += await log.search(kind=kind, limit=RECENT_ALARMS)
    found.sort(key=lambda entry: entry.index, reverse=True)
    return tuple(
        Alarm(entry.at, entry.event.kind, _node_of(entry.event.actor)) for entry in found[:RECENT_ALARMS]
    )


def _node_of(actor: str) -> str:
    """`member:b-central` → `b-central`; any other kind of actor is the hub's own machinery."""
    kind, _, name = actor.partition(":")
    return name if kind == "member" else ""


def _run_json(run: Run) -> Json:
    return {
        "id": run.id,
        "title": run.title,
        "state": run.state.value,
        "launched": run.launched.isoformat(),
        "rounds": run.rounds,
        "rounds_done": run.rounds_done,
    }

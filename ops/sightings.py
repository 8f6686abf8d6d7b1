"""What in the log makes a finding.

`sightings` is a table of rules from one log entry to what was seen in it; `Overseer` reads the log from its own cursor
and hands what was seen to `Findings`, each entry once. Holds no words (`findingwords`) and no condition (`checks`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from consent.errors import Conflict
from consent.vocabulary import EventKind
from node.access.admission import WORDS as DEVICE_WORDS
from node.access.device_registry import DeviceRegistry
from node.access.live import places_of, refusals_in
from node.audit.event import Entry, Event
from node.audit.following import news, settle
from node.audit.log import Log
from node.database import Database
from ops.findings import Findings
from ops.findingtables import FindingKind, Mended, Severity, Sighting
from ops.findingwords import WORDS

READER: Final = "findings"
MAX_READINGS: Final = 20
MAX_REASON_CHARACTERS: Final = 500
Places = Mapping[str, str]
"""Which device stands at an address, where exactly one does."""

STORAGE: Final = "storage"
DATABASE: Final = "database"
INDEX_NAMES: Final = ("index_", "ix_index_", "sqlite_autoindex_index_")
"""How the names of the index's tables and search trees begin."""
STRANGE_CODES: Final = frozenset({"tls-handshake", "no-request", "not-dicom-3"})


class Overseer:
    """Follows the log and keeps the findings. Use `follow` as a job."""

    def __init__(self, database: Database, log: Log, registry: DeviceRegistry, findings: Findings) -> None:
        self._database = database
        self._log = log
        self._registry = registry
        self._findings = findings

    async def follow(self) -> None:
        """A job: make findings of what the log says since last time."""
        places: Places | None = None
        for _ in range(MAX_READINGS):
            read = await news(self._log, READER, tuple(RULES))
            if not read.worth_settling:
                return
            if places is None:
                places = places_of(await self._registry.survey())
            seen = [one for entry in read.entries for one in sightings(entry, places)]
            lost = [_unreadable(index, self._log.clock.now()) for index in read.unreadable]
            try:
                async with self._database.write() as tx:
                    await settle(self._log, tx, read)
                    await self._findings.take(tx, [*lost, *seen])
            except Conflict:  # another process has taken these entries
                continue
            if not read.more:
                return


def sightings(entry: Entry, places: Places) -> list[Sighting | Mended]:
    """What one entry shows: nothing, mostly."""
    rule = RULES.get(entry.event.kind)
    return rule(entry, places) if rule is not None and refusals_in(entry.event) else []


def at_place(device: str, address: str) -> str:
    """How a finding names a device at an address."""
    return f"{device} ({address})" if address else device


def _refused(entry: Entry, places: Places) -> list[Sighting | Mended]:
    event, address = entry.event, entry.event.address or ""
    code, faults = str(event.detail.get("code", "")), _faults(event)
    device = str(event.detail.get("device") or "") or places.get(address, "")
    if faults:
        first, *others = faults
        if device:
            return [_device(entry, device, first[0], first[1], tuple(others))]
        kind, subject = FindingKind.STRANGER_REFUSED, address
        return [_sighting(entry, kind, Severity.WARNING, subject, first[0], first[1])]
    if code.startswith("too-many"):
        return [_sighting(entry, FindingKind.DOOR_CROWDED, Severity.WARNING, address, "too-many")]
    known = code if code in STRANGE_CODES else "told"
    if device:
        return [_device(entry, device, known, _reason(event), ())]
    kind = FindingKind.STRANGER_REFUSED
    return [_sighting(entry, kind, Severity.NOTICE, address, known, _reason(event), key=f"{address} {code}")]


def _accepted(entry: Entry, places: Places) -> list[Sighting | Mended]:
    address, device = entry.event.address or "", entry.event.actor.removeprefix("device:")
    return [
        Mended((FindingKind.DEVICE_REFUSED,), at_place(device, address)),
        Mended((FindingKind.STRANGER_REFUSED,), address),
    ]


def _input(entry: Entry, places: Places) -> list[Sighting | Mended]:
    event, address = entry.event, entry.event.address or ""
    device = str(event.detail.get("device") or "") or places.get(address, "")
    subject = at_place(device, address) if device else address
    key = f"{subject} {event.detail.get('code', '')}"
    kind, severity = FindingKind.DEVICE_FAULTY, Severity.NOTICE
    code = f"input-{event.detail.get('code', '')}"
    said = code if code in WORDS else "input"
    return [_sighting(entry, kind, severity, subject, said, _reason(event), key=key)]


def _instance(entry: Entry, places: Places) -> list[Sighting | Mended]:
    event = entry.event
    subject = event.actor.removeprefix("device:")
    key = f"{subject} {event.detail.get('code', '')}"
    kind, severity = FindingKind.INSTANCE_REFUSED, Severity.NOTICE
    return [_sighting(entry, kind, severity, subject, "instance", _reason(event), key=key)]


def _integrity(entry: Entry, places: Places) -> list[Sighting | Mended]:
    event, detail = entry.event, entry.event.detail
    grave = Severity.INCIDENT
    if "table" in detail:
        table, row = str(detail["table"]), str(detail.get("row", ""))
        subject = f"{table} {row}" if table == "device" else table
        values = {"table": table}
        kind = FindingKind.ROW_ALTERED
        return [_sighting(entry, kind, grave, subject, "row-altered", values, key=f"{table} {row}")]
    if "database" in detail:
        return [_database(entry)]
    if "log" in detail:
        return [_sighting(entry, FindingKind.LOG_ALTERED, grave, "log", "log-verify", _reason(event))]
    subject = event.study or event.actor
    return [_sighting(entry, FindingKind.INTEGRITY_FAILED, grave, subject, "integrity", _reason(event))]


def _database(entry: Entry) -> Sighting:
    """Damage in the pages of the database: made good, to be made good from the packs, or neither."""
    detail = entry.event.detail
    names = detail["database"]
    told = [str(name) for name in names] if isinstance(names, list | tuple) else []
    index = bool(told) and all(name.startswith(INDEX_NAMES) for name in told)
    code = "database-mended" if detail.get("mended") else "database-index" if index else "database-damaged"
    severity = Severity.WARNING if detail.get("mended") else Severity.INCIDENT
    kind, values = FindingKind.DATABASE_DAMAGED, {"names": ", ".join(told)[:MAX_REASON_CHARACTERS]}
    return _sighting(entry, kind, severity, DATABASE, code, values, key=f"{DATABASE} {code}")


def _rebuilt(entry: Entry, places: Places) -> list[Sighting | Mended]:
    """The index was made anew, which looks at the whole database first: what it told of and the index alone is over."""
    if entry.event.detail.get("damaged"):
        return []
    return [Mended((FindingKind.DATABASE_DAMAGED,), f"{DATABASE} database-index")]


def _witness(entry: Entry, places: Places) -> list[Sighting | Mended]:
    event = entry.event
    subject = str(event.detail.get("origin", "")) or event.actor
    kind, grave = FindingKind.WITNESS_ALARMED, Severity.INCIDENT
    key = f"{subject} {event.reason}"
    return [_sighting(entry, kind, grave, subject, "witness", _reason(event), key=key)]


def _roster(entry: Entry, places: Places) -> list[Sighting | Mended]:
    kind = FindingKind.ROSTER_REFUSED
    return [_sighting(entry, kind, Severity.WARNING, entry.event.actor, "roster", _reason(entry.event))]


def _member(entry: Entry, places: Places) -> list[Sighting | Mended]:
    event = entry.event
    subject = event.actor if event.actor.startswith("member:") else event.address or event.actor
    return [_sighting(entry, FindingKind.MEMBER_REFUSED, Severity.WARNING, subject, "member", _reason(event))]


def _accepted_rows(entry: Entry, places: Places) -> list[Sighting | Mended]:
    kind = FindingKind.ROW_ALTERED
    return [
        _sighting(entry, kind, Severity.WARNING, entry.event.actor, "rows-accepted", _reason(entry.event))
    ]


def _degraded(entry: Entry, places: Places) -> list[Sighting | Mended]:
    event, kind = entry.event, FindingKind.STORAGE_DEGRADED
    if event.detail.get("writing") is False:
        return [_sighting(entry, kind, Severity.INCIDENT, STORAGE, "storage-closed", _reason(event))]
    return [_sighting(entry, kind, Severity.WARNING, _root(event), "storage-root", _reason(event))]


def _healed(entry: Entry, places: Places) -> list[Sighting | Mended]:
    event, kinds = entry.event, (FindingKind.STORAGE_DEGRADED,)
    if "in_sync" not in event.detail:
        return []
    taking = event.detail.get("writing") is True or event.detail["in_sync"] == event.detail.get("of")
    whole = [Mended(kinds, STORAGE)] if taking else []
    return [Mended(kinds, _root(event)), *whole]


def _reset(entry: Entry, places: Places) -> list[Sighting | Mended]:
    values, login = _who(entry.event)
    kind = FindingKind.SIGN_IN_RESET
    return [_sighting(entry, kind, Severity.WARNING, login, "sign-in-reset", values)]


def _reset_confirmed(entry: Entry, places: Places) -> list[Sighting | Mended]:
    return [Mended((FindingKind.SIGN_IN_RESET,), _who(entry.event)[1])]


def _reset_disowned(entry: Entry, places: Places) -> list[Sighting | Mended]:
    values, login = _who(entry.event)
    kind = FindingKind.SIGN_IN_DISOWNED
    return [_sighting(entry, kind, Severity.INCIDENT, login, "sign-in-disowned", values)]


def _device_changed(entry: Entry, places: Places) -> list[Sighting | Mended]:
    event, device = entry.event, str(entry.event.detail.get("ae_title", ""))
    if "replaced_agent" not in event.detail:
        return []
    values, kind = {"device": device, "by": event.actor}, FindingKind.AGENT_REPLACED
    return [_sighting(entry, kind, Severity.WARNING, device, "agent-replaced", values)]


def _root(event: Event) -> str:
    return f"root {event.detail.get('root', '')}"


def _who(event: Event) -> tuple[dict[str, str], str]:
    login = str(event.detail.get("login", ""))
    return {"login": login, "by": str(event.detail.get("by") or event.actor)}, login


Rule = Callable[[Entry, Places], list[Sighting | Mended]]
RULES: Final[Mapping[EventKind, Rule]] = {
    EventKind.ASSOCIATION_REFUSED: _refused,
    EventKind.ASSOCIATION_ACCEPTED: _accepted,
    EventKind.INPUT_REFUSED: _input,
    EventKind.INSTANCE_REFUSED: _instance,
    EventKind.INTEGRITY_FAILED: _integrity,
    EventKind.WITNESS_ALARMED: _witness,
    EventKind.ACCESS_ROWS_ACCEPTED: _accepted_rows,
    EventKind.REPLICA_DEGRADED: _degraded,
    EventKind.REPLICA_HEALED: _healed,
    EventKind.SIGN_IN_RESET: _reset,
    EventKind.SIGN_IN_RESET_CONFIRMED: _reset_confirmed,
    EventKind.SIGN_IN_RESET_DISOWNED: _reset_disowned,
    EventKind.DEVICE_CHANGED: _device_changed,
    EventKind.INDEX_REBUILT: _rebuilt,
    EventKind.ROSTER_REFUSED: _roster,
    EventKind.PEER_REFUSED: _member,
}
"""What each kind of entry shows. A door that refuses adds a row here, or the refusal is no finding."""


def _device(
    entry: Entry,
    device: str,
    code: str,
    values: Mapping[str, str],
    others: tuple[tuple[str, Mapping[str, str]], ...],
) -> Sighting:
    """A registered device was refused. One that is out of use and tries all the same is a notice."""
    quiet = code in ("device-maintenance", "device-retired") and not others
    severity = Severity.NOTICE if quiet else Severity.WARNING
    subject = at_place(device, entry.event.address or "")
    return _sighting(entry, FindingKind.DEVICE_REFUSED, severity, subject, code, values, details=others)


def _sighting(
    entry: Entry,
    kind: FindingKind,
    severity: Severity,
    subject: str,
    code: str,
    values: Mapping[str, str] | None = None,
    **more: Any,
) -> Sighting:
    count = refusals_in(entry.event)
    subject = subject or entry.event.actor
    return Sighting(kind, severity, subject, code, entry.at, values or {}, count, entry.index, **more)


def _unreadable(index: int, at: Any) -> Sighting:
    kind, values = FindingKind.LOG_ALTERED, {"entry": str(index)}
    return Sighting(kind, Severity.INCIDENT, "log", "log-entry", at, values, entry=index)


def _faults(event: Event) -> list[tuple[str, Mapping[str, str]]]:
    """The faults of a refused device with their values, as `admission.DeviceRefused` told them."""
    codes, values = event.detail.get("faults"), event.detail.get("values")
    if not isinstance(codes, list | tuple) or not isinstance(values, Mapping):
        return []
    plain = {str(name): str(value) for name, value in values.items()}
    return [(str(code), plain) for code in codes if str(code) in DEVICE_WORDS]


def _reason(event: Event) -> dict[str, str]:
    return {"reason": event.reason[:MAX_REASON_CHARACTERS]}

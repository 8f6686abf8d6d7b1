"""What in the log makes a finding, and the words of every finding.

`sightings` is a table of rules from one log entry to what was seen in it; `Overseer` reads the log from its own cursor
and hands what was seen to `Findings`, each entry once. `WORDS` are what is wrong and how to mend it, by a finding's
code; the words of refused devices are `node.access.admission`'s. Holds no condition (`checks`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from consent.errors import Conflict
from consent.vocabulary import EventKind
from node.access.admission import WORDS as DEVICE_WORDS
from node.access.admission import Words
from node.access.device_registry import DeviceRegistry
from node.access.live import Speak, places_of, refusals_in
from node.audit.event import Entry, Event
from node.audit.following import news, settle
from node.audit.log import Log
from node.database import Database
from ops.findings import OVERFLOW, Finding, FindingKind, Findings, Handled, Mended, Severity, Sighting

READER: Final = "findings"
MAX_READINGS: Final = 20
MAX_REASON_CHARACTERS: Final = 500
Places = Mapping[str, str]
"""Which device stands at an address, where exactly one does."""

WORDS: Final[Mapping[str, Words]] = {
    **DEVICE_WORDS,
    "told": Words("%(reason)s", ""),
    "overflow": Words(
        "There are more of this kind than are listed; these are counted here.",
        "Look into the listed ones first: most likely they have one cause.",
    ),
    "tls-handshake": Words(
        "%(reason)s",
        "Look at the device's certificate, its clock, and whether it trusts this node's authority (ca.crt).",
    ),
    "no-request": Words(
        "Something connects to the DICOM port and asks for nothing.",
        "It may be a port scan or a monitoring probe. Find out whose address it is.",
    ),
    "not-dicom-3": Words(
        "It asked for another protocol than DICOM 3.0.", "Check what the device is set up to speak."
    ),
    "too-many": Words(
        "More connections were opened than this node takes.",
        "Raise dicom.max_associations if the devices need it; otherwise find out what floods the port.",
    ),
    "input": Words(
        "%(reason)s", "Have the device's vendor look at what it sends, and at the network between."
    ),
    "input-cut-short": Words(
        "The association ended in the middle of an instance; it was not kept.",
        "The device sends it again. If it goes on, look at the network between, and at the device's time limits.",
    ),
    "input-unexpected-pdu": Words(
        "It sent a PDU that the association's state does not allow.",
        "Have the device's vendor look at what it sends.",
    ),
    "input-stalled": Words(
        "It did not read what it asked for.", "Look at the device's load and at the network between."
    ),
    "instance": Words(
        "Images were refused: %(reason)s",
        "Correct it at the device and send the images again; the device has them.",
    ),
    "row-altered": Words(
        "A row of the database was changed outside this node (%(table)s).",
        "Call the security officer. A device is put right by registering it anew; anything else by restoring the "
        "database from its backup.",
    ),
    "integrity": Words(
        "Stored or received bytes are not those that were signed: %(reason)s",
        "Nothing of them was shown. Call the security officer, and restore the study from a good copy.",
    ),
    "log-entry": Words(
        "Entry %(entry)s of the log cannot be read: the database was altered or damaged.",
        "Run accord log verify; it names everything that was altered. Restore the database from its backup.",
    ),
    "log-verify": Words(
        "Verifying the log found that it was altered: %(reason)s",
        "Keep the disk as evidence. Restore the database from its backup; the witnesses know the true checkpoints.",
    ),
    "witness": Words(
        "%(reason)s",
        "A log was cut back, rewritten or restored from an old backup. Compare it with the checkpoints that other "
        "members hold.",
    ),
    "rows-accepted": Words(
        "Access rows that had been deleted or put back were accepted as they are: %(reason)s",
        "Look at who accepted them and why; then resolve this.",
    ),
    "storage-root": Words(
        "%(reason)s",
        "Bring the root back or replace it: accord replicas status. Nothing is lost while others hold it.",
    ),
    "storage-closed": Words(
        "%(reason)s", "Nothing can be stored until enough storage roots are back: accord replicas status"
    ),
    "sign-in-reset": Words(
        "A one-time sign-in was made for %(login)s, an account in use, by %(by)s.",
        "The person says at the next sign-in whether they had asked for it; if they do not come, ask them.",
    ),
    "sign-in-disowned": Words(
        "%(login)s had not asked for the one-time sign-in that %(by)s made.",
        "Somebody else may have signed in with it. Look in the log at what was done since, and talk to whoever made it.",
    ),
    "access-rows": Words("%(reason)s", "Run accord access verify, and find out who had the database."),
    "roster": Words(
        "A roster was refused: %(reason)s", "Ask the region's hub; the roster in force stays in force."
    ),
    "member": Words(
        "%(reason)s",
        "If it is a member: compare its certificate with the roster. If not, find out who calls.",
    ),
    "disk-low": Words(
        "The disk of %(place)s has %(free)s left.",
        "Free space or move the folder: a full disk refuses studies, it loses none.",
    ),
    "certificate-expiring": Words(
        "The certificate of %(device)s ends on %(ends)s.",
        "Renew it and install the new one; both are let in during the overlap: accord device renew-certificate",
    ),
    "certificate-ended": Words(
        "The certificate of %(device)s ended on %(ends)s: it cannot send.",
        "Renew it and install the new one at the device: accord device renew-certificate",
    ),
    "clock-behind": Words(
        "This machine's clock is %(behind)s s behind the last time on record.",
        "Set the clock (NTP): until it catches up, time stands still for grants and sessions.",
    ),
    "job-failing": Words("The timed duty %(job)s fails: %(reason)s", "It is tried again at every interval."),
}
"""By code. `reason` is in the words of whoever refused; a sentence that the catalogue knows is translated."""


def N_(words: str) -> str:  # noqa: N802
    """Marks words for the catalogue. The pages' own loads what a command need not have."""
    return words


TITLES: Final[Mapping[FindingKind, str]] = {
    FindingKind.DEVICE_REFUSED: N_("Device refused"),
    FindingKind.STRANGER_REFUSED: N_("Unknown device refused"),
    FindingKind.DOOR_CROWDED: N_("Too many connections"),
    FindingKind.DEVICE_FAULTY: N_("Device does not speak DICOM properly"),
    FindingKind.INSTANCE_REFUSED: N_("Images refused"),
    FindingKind.INTEGRITY_FAILED: N_("Integrity check failed"),
    FindingKind.ROW_ALTERED: N_("Database altered"),
    FindingKind.LOG_ALTERED: N_("Log altered"),
    FindingKind.WITNESS_ALARMED: N_("Witness alarm"),
    FindingKind.STORAGE_DEGRADED: N_("Storage root out of sync"),
    FindingKind.SIGN_IN_RESET: N_("One-time sign-in for an account in use"),
    FindingKind.SIGN_IN_DISOWNED: N_("One-time sign-in disowned"),
    FindingKind.ROSTER_REFUSED: N_("Roster refused"),
    FindingKind.MEMBER_REFUSED: N_("Other node refused"),
    FindingKind.DISK_LOW: N_("Disk nearly full"),
    FindingKind.CERTIFICATE_EXPIRING: N_("Device certificate ends soon"),
    FindingKind.CERTIFICATE_ENDED: N_("Device certificate has ended"),
    FindingKind.CLOCK_BEHIND: N_("Clock is behind"),
    FindingKind.JOB_FAILING: N_("Timed duty fails"),
}
RESOLVED_BY_ITSELF: Final = (N_("The condition is over."), N_("It has worked since."))
"""What `findings` writes as the words of a resolution that no person made."""
OTHERS: Final = N_("others of this kind")
STORAGE: Final = "storage"
STRANGE_CODES: Final = frozenset({"tls-handshake", "no-request", "not-dicom-3"})


@dataclass(frozen=True)
class Told:
    """A finding in words: what it is, about what, and each fault with its way out."""

    title: str
    subject: str
    words: tuple[tuple[str, str], ...]

    @property
    def summary(self) -> str:
        """What is wrong, in one line."""
        return " ".join(fault for fault, _mend in self.words)


def tell(finding: Finding, speak: Speak = str) -> Told:
    """Say a finding in the language of `speak`."""
    subject = speak(OTHERS) if finding.subject == OVERFLOW else finding.subject
    parts = [(finding.code, finding.values), *finding.details]
    return Told(
        speak(TITLES[finding.kind]), subject, tuple(_said(code, values, speak) for code, values in parts)
    )


def finding_json(one: Finding, speak: Speak = str) -> dict[str, Any]:
    """A finding for programs; its words are put through `speak`."""
    told = tell(one, speak)
    codes = (one.code, *(code for code, _values in one.details))
    said = zip(codes, told.words, strict=True)
    return {
        "id": one.id,
        "kind": one.kind.value,
        "severity": one.severity.value,
        "subject": one.subject,
        "state": one.state.value,
        "title": told.title,
        "faults": [{"code": code, "words": fault, "mend": mend} for code, (fault, mend) in said],
        "first_seen": one.first_seen.isoformat(),
        "last_seen": one.last_seen.isoformat(),
        "count": one.count,
        "entry": one.entry,
        "acknowledged": _handled_json(one.acknowledged),
        "resolved": _handled_json(one.resolved),
    }


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
    if "log" in detail:
        return [_sighting(entry, FindingKind.LOG_ALTERED, grave, "log", "log-verify", _reason(event))]
    subject = event.study or event.actor
    return [_sighting(entry, FindingKind.INTEGRITY_FAILED, grave, subject, "integrity", _reason(event))]


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
    whole = [Mended(kinds, STORAGE)] if event.detail["in_sync"] == event.detail.get("of") else []
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


def _handled_json(handled: Handled | None) -> dict[str, str] | None:
    if handled is None:
        return None
    return {"at": handled.at.isoformat(), "by": handled.by, "words": handled.words}


def _said(code: str, values: Mapping[str, str], speak: Speak) -> tuple[str, str]:
    words = WORDS.get(code, WORDS["told"])
    known = {name: speak(value) if name == "reason" else value for name, value in values.items()}
    return _filled(words.fault, known, speak), _filled(words.mend, known, speak)


def _filled(words: str, values: Mapping[str, str], speak: Speak) -> str:
    try:
        return speak(words) % values
    except (KeyError, TypeError, ValueError):  # a finding of another version: its words have other places
        return speak(words)

"""The words of findings: what is wrong and how to mend it, by a finding's code, and each kind's title.

Said in the language of whoever asks: `speak` gives a sentence in it. The words of refused devices are
`node.access.admission`'s. Loads no page, so that a command need not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from node.access.admission import WORDS as DEVICE_WORDS
from node.access.admission import Words
from node.access.live import Speak
from ops.findingtables import OVERFLOW, Finding, FindingKind, Handled

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
    "database-mended": Words(
        "Parts of the database were damaged and were made anew from what is whole: %(names)s.",
        "Nothing is lost. The disk or the memory returned other bytes than were written: look at both, then resolve this.",
    ),
    "database-index": Words(
        "The index is damaged: %(names)s. Searches may leave studies out.",
        "Stop the node and run accord index rebuild: it is made anew from the packs.",
    ),
    "database-damaged": Words(
        "The database is damaged: %(names)s.",
        "Stop the node, keep a copy of the database, and restore it from its backup. The runbook damaged-database.md "
        "says what is lost with which table.",
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
    "agent-replaced": Words(
        "The key of the edge agent beside %(device)s was replaced by %(by)s.",
        "Whoever holds the new key can certify that the media were wiped. Ask why, look at what the former agent still holds, then resolve this.",
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


def N_(words: str) -> str:  # noqa: N802 (gettext's name)
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
    FindingKind.DATABASE_DAMAGED: N_("Database damaged"),
    FindingKind.WITNESS_ALARMED: N_("Witness alarm"),
    FindingKind.STORAGE_DEGRADED: N_("Storage root out of sync"),
    FindingKind.SIGN_IN_RESET: N_("One-time sign-in for an account in use"),
    FindingKind.SIGN_IN_DISOWNED: N_("One-time sign-in disowned"),
    FindingKind.AGENT_REPLACED: N_("Edge agent's key replaced"),
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

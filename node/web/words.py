"""What the vocabulary's codes are called on a page. A test keeps every event and role named here.

Only names; `consent.vocabulary` says what the codes mean.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from consent.vocabulary import Action, EventKind, Grade, Outcome, Purpose, Right, Role
from node.web.text import N_, _

WORDS: Final[dict[Enum, str]] = {
    Role.ADMINISTRATOR: N_("Hospital IT"),
    Role.CLINICIAN: N_("Clinician"),
    Role.CHIEF_PHYSICIAN: N_("Chief physician"),
    Role.RESEARCHER: N_("Researcher"),
    Role.SECURITY_OFFICER: N_("Security officer"),
    Role.HUB_OPERATOR: N_("Hub operator"),
    Role.DEVICE: N_("Device"),
    Role.MEMBER: N_("Member hospital"),
    Role.JOB: N_("Scheduled job"),
    Purpose.TREATMENT: N_("Treatment"),
    Purpose.EMERGENCY: N_("Emergency treatment"),
    Purpose.RESEARCH: N_("Research"),
    Purpose.QUALITY: N_("Quality improvement"),
    Purpose.OPERATIONS: N_("Operation of the hospital"),
    Right.VIEW: N_("View"),
    Right.DOWNLOAD: N_("Download"),
    Right.PRINT: N_("Print"),
    Grade.ORDINARY: N_("Ordinary"),
    Grade.SENSITIVE: N_("Sensitive"),
    Grade.RESTRICTED: N_("Restricted"),
    Outcome.DONE: N_("Done"),
    Outcome.REFUSED: N_("Refused"),
    Outcome.FAILED: N_("Failed"),
    Action.INGEST: N_("Store a study"),
    Action.SEARCH: N_("Search studies"),
    Action.VIEW: N_("View a study"),
    Action.DOWNLOAD: N_("Download a study"),
    Action.PRINT: N_("Print a study"),
    Action.REQUEST: N_("Request a study"),
    Action.FETCH: N_("Fetch a study"),
    Action.GRANT: N_("Grant access"),
    Action.REVOKE: N_("Revoke access"),
    Action.RECORD_CONSENT: N_("Record consent"),
    Action.TRAIN: N_("Train a model"),
    Action.APPROVE_PLAN: N_("Approve a plan"),
    Action.LAUNCH_RUN: N_("Launch a run"),
    Action.READ_LOG: N_("Read the log"),
    Action.ADMINISTER: N_("Administer the node"),
    Action.RECORD_CARE: N_("Record a care relationship"),
    Action.REVIEW_EMERGENCY: N_("Review an emergency access"),
    Action.COMMIT: N_("Ask for storage commitment"),
    EventKind.STORAGE_COMMITTED: N_("Storage commitment answered"),
    Action.REGRADE: N_("Set a study's grade"),
    EventKind.NODE_INITIALISED: N_("Node set up"),
    EventKind.NODE_STARTED: N_("Node started"),
    EventKind.NODE_STOPPED: N_("Node stopped"),
    EventKind.DEVICE_REGISTERED: N_("Device registered"),
    EventKind.ASSOCIATION_ACCEPTED: N_("Device connected"),
    EventKind.ASSOCIATION_REFUSED: N_("Device refused"),
    EventKind.INSTANCES_STORED: N_("Images stored"),
    EventKind.INSTANCE_REFUSED: N_("Image refused"),
    EventKind.STUDIES_SEARCHED: N_("Studies searched"),
    EventKind.STUDY_OPENED: N_("Study opened"),
    EventKind.STUDY_VIEWED: N_("Study viewed"),
    EventKind.STUDY_DOWNLOADED: N_("Study downloaded"),
    EventKind.ACCESS_REFUSED: N_("Access refused"),
    EventKind.EMERGENCY_OPENED: N_("Emergency access"),
    EventKind.EMERGENCY_REVIEWED: N_("Emergency access reviewed"),
    EventKind.INTEGRITY_FAILED: N_("Integrity check failed"),
    EventKind.ACCESS_ROWS_SEALED: N_("Access rows noted"),
    EventKind.ACCESS_ROWS_ACCEPTED: N_("Altered access rows accepted"),
    EventKind.REPLICA_DEGRADED: N_("Storage root out of sync"),
    EventKind.REPLICA_HEALED: N_("Storage root healed"),
    EventKind.PACK_COMPACTED: N_("Study pack compacted"),
    EventKind.INDEX_REBUILT: N_("Index rebuilt"),
    EventKind.PERSON_ADDED: N_("Person added"),
    EventKind.PERSON_CHANGED: N_("Person changed"),
    EventKind.SIGN_IN_RESET: N_("One-time sign-in for an account in use"),
    EventKind.SIGN_IN_RESET_CONFIRMED: N_("One-time sign-in confirmed by its person"),
    EventKind.SIGN_IN_RESET_DISOWNED: N_("One-time sign-in that its person did not ask for"),
    EventKind.SIGNED_IN: N_("Signed in"),
    EventKind.SIGN_IN_REFUSED: N_("Sign-in refused"),
    EventKind.SIGNED_OUT: N_("Signed out"),
    EventKind.TOKEN_CREATED: N_("Token created"),
    EventKind.CARE_RECORDED: N_("Care relationship recorded"),
    EventKind.CARE_ENDED: N_("Care relationship ended"),
    EventKind.CONSENT_RECORDED: N_("Consent recorded"),
    EventKind.CONSENT_WITHDRAWN: N_("Consent withdrawn"),
    EventKind.STUDY_REQUESTED: N_("Study requested"),
    EventKind.STUDY_REQUEST_DECLINED: N_("Request declined"),
    EventKind.GRANT_ISSUED: N_("Grant issued"),
    EventKind.GRANT_REVOKED: N_("Grant revoked"),
    EventKind.GRANT_RECEIVED: N_("Grant received"),
    EventKind.PACK_RELEASED: N_("Sealed copy released"),
    EventKind.PACK_HELD: N_("Sealed copy received"),
    EventKind.LEASE_RELEASED: N_("Key lease released"),
    EventKind.LEASE_REFUSED: N_("Key lease refused"),
    EventKind.COPY_SHREDDED: N_("Copy destroyed"),
    EventKind.SHRED_RECEIPT_RECEIVED: N_("Destruction receipt received"),
    EventKind.MEMBER_INVITED: N_("Member invited"),
    EventKind.MEMBER_JOINED: N_("Member joined"),
    EventKind.ROSTER_ACCEPTED: N_("Roster accepted"),
    EventKind.ROSTER_REFUSED: N_("Roster refused"),
    EventKind.PEER_REFUSED: N_("Other node refused"),
    EventKind.CHECKPOINT_SIGNED: N_("Checkpoint signed"),
    EventKind.CHECKPOINT_COSIGNED: N_("Checkpoint cosigned"),
    EventKind.WITNESS_ALARMED: N_("Witness alarm"),
    EventKind.KEY_ROTATED: N_("Key rotated"),
    EventKind.KEY_DESTROYED: N_("Old key destroyed"),
    EventKind.GRADE_UNLOCKED: N_("Grade unlocked"),
    EventKind.GRADE_LOCKED: N_("Grade locked"),
    EventKind.ROOT_KEY_CHANGED: N_("Root key changed"),
    EventKind.STUDY_REGRADED: N_("Study regraded"),
    EventKind.PROPOSAL_PUT: N_("Proposal put"),
    EventKind.PROPOSAL_SIGNED: N_("Proposal signed"),
    EventKind.PROPOSAL_CLOSED: N_("Proposal closed"),
    EventKind.PLAN_PROPOSED: N_("Training plan proposed"),
    EventKind.PLAN_APPROVED: N_("Training plan approved"),
    EventKind.PLAN_REFUSED: N_("Training plan refused"),
    EventKind.TRAINING_STARTED: N_("Training started"),
    EventKind.TRAINING_ROUND_DONE: N_("Training round done"),
    EventKind.TRAINING_REFUSED: N_("Training refused"),
    EventKind.TRAINING_FINISHED: N_("Training finished"),
    EventKind.MODEL_REGISTERED: N_("Model registered"),
    EventKind.INPUT_REFUSED: N_("Input refused"),
    EventKind.LOG_READ: N_("Log read"),
    EventKind.TOKEN_REVOKED: N_("Token revoked"),
    EventKind.DEVICE_CHANGED: N_("Device changed"),
    EventKind.DEVICE_CERTIFICATE_ISSUED: N_("Device certificate issued"),
    EventKind.DEVICE_CERTIFICATE_RENEWED: N_("Device certificate renewed"),
    EventKind.FINDING_OPENED: N_("Finding opened"),
    EventKind.FINDING_ACKNOWLEDGED: N_("Finding acknowledged"),
    EventKind.FINDING_RESOLVED: N_("Finding resolved"),
    EventKind.GRANT_ENDED: N_("Grant ended"),
    EventKind.MEMBER_SUSPENDED: N_("Member suspended"),
    EventKind.MEMBER_REINSTATED: N_("Member reinstated"),
}


def word(value: object) -> str:
    """The name of a vocabulary value in the person's language; any other value as text."""
    if isinstance(value, Enum):
        return _(WORDS.get(value, str(value.value)))
    return str(value)


def actor(value: str) -> str:
    """Who did something, as a person reads it: the login, the AE title, the member; the node itself in words."""
    kind, _sep, name = value.partition(":")
    if kind in ("job", "system") and (kind == "job" or not name):
        return _("This node")
    return name.partition("@")[0] if kind == "person" else name or value


def tone(outcome: Outcome) -> str:
    """The colour of an outcome."""
    return {Outcome.DONE: "good", Outcome.REFUSED: "warn", Outcome.FAILED: "bad"}[outcome]

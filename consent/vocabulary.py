"""Every word that access is spoken in: actions, purposes, grades, roles, resources, events.

Values are stable: they are signed, stored and sent. Add at the end; never rename. Actions follow
`resource:verb`; events are in the past tense. Purposes are HL7 v3 PurposeOfUse codes.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum


class Action(StrEnum):
    """What somebody may ask to do."""

    INGEST = "study:ingest"
    SEARCH = "study:search"
    VIEW = "study:view"
    DOWNLOAD = "study:download"
    PRINT = "study:print"
    REQUEST = "study:request"
    FETCH = "study:fetch"
    GRANT = "grant:issue"
    REVOKE = "grant:revoke"
    RECORD_CONSENT = "consent:record"
    TRAIN = "study:train"
    APPROVE_PLAN = "plan:approve"
    LAUNCH_RUN = "run:launch"
    READ_LOG = "log:read"
    ADMINISTER = "node:administer"
    RECORD_CARE = "care:record"
    REVIEW_EMERGENCY = "emergency:review"
    COMMIT = "study:commit"
    REGRADE = "study:regrade"


class Purpose(StrEnum):
    """Why it is asked (HL7 v3 PurposeOfUse)."""

    TREATMENT = "TREAT"
    EMERGENCY = "ETREAT"
    RESEARCH = "HRESCH"
    QUALITY = "HQUALIMP"
    OPERATIONS = "HOPERAT"


class Grade(IntEnum):
    """How sensitive a study is. Each grade has its own key-encryption keys."""

    ORDINARY = 1
    SENSITIVE = 2
    RESTRICTED = 3


class Role(StrEnum):
    """What a principal is, for the rules."""

    ADMINISTRATOR = "administrator"
    CLINICIAN = "clinician"
    CHIEF_PHYSICIAN = "chief-physician"
    RESEARCHER = "researcher"
    SECURITY_OFFICER = "security-officer"
    HUB_OPERATOR = "hub-operator"
    DEVICE = "device"
    MEMBER = "member"
    JOB = "job"


class ResourceKind(StrEnum):
    """What a request is about."""

    STUDY = "study"
    PATIENT = "patient"
    GRANT = "grant"
    CONSENT = "consent"
    PLAN = "plan"
    RUN = "run"
    LOG = "log"
    NODE = "node"


class Right(StrEnum):
    """What a grant may confer. A grant never confers more than its consent."""

    VIEW = "view"
    DOWNLOAD = "download"
    PRINT = "print"


class Outcome(StrEnum):
    """How a deed ended."""

    DONE = "done"
    REFUSED = "refused"
    FAILED = "failed"


class EventKind(StrEnum):
    """What the log can say. The docs list every one of these with its meaning."""

    NODE_INITIALISED = "NodeInitialised"
    NODE_STARTED = "NodeStarted"
    NODE_STOPPED = "NodeStopped"
    DEVICE_REGISTERED = "DeviceRegistered"
    ASSOCIATION_ACCEPTED = "AssociationAccepted"
    ASSOCIATION_REFUSED = "AssociationRefused"
    INSTANCES_STORED = "InstancesStored"
    INSTANCE_REFUSED = "InstanceRefused"
    STUDIES_SEARCHED = "StudiesSearched"
    STUDY_OPENED = "StudyOpened"
    STUDY_VIEWED = "StudyViewed"
    STUDY_DOWNLOADED = "StudyDownloaded"
    ACCESS_REFUSED = "AccessRefused"
    EMERGENCY_OPENED = "EmergencyOpened"
    EMERGENCY_REVIEWED = "EmergencyReviewed"
    INTEGRITY_FAILED = "IntegrityFailed"
    PERSON_ADDED = "PersonAdded"
    PERSON_CHANGED = "PersonChanged"
    SIGNED_IN = "SignedIn"
    SIGN_IN_REFUSED = "SignInRefused"
    SIGNED_OUT = "SignedOut"
    TOKEN_CREATED = "TokenCreated"
    CARE_RECORDED = "CareRecorded"
    CARE_ENDED = "CareEnded"
    CONSENT_RECORDED = "ConsentRecorded"
    CONSENT_WITHDRAWN = "ConsentWithdrawn"
    STUDY_REQUESTED = "StudyRequested"
    STUDY_REQUEST_DECLINED = "StudyRequestDeclined"
    GRANT_ISSUED = "GrantIssued"
    GRANT_REVOKED = "GrantRevoked"
    GRANT_RECEIVED = "GrantReceived"
    PACK_RELEASED = "PackReleased"
    PACK_HELD = "PackHeld"
    LEASE_RELEASED = "LeaseReleased"
    LEASE_REFUSED = "LeaseRefused"
    COPY_SHREDDED = "CopyShredded"
    SHRED_RECEIPT_RECEIVED = "ShredReceiptReceived"
    MEMBER_JOINED = "MemberJoined"
    ROSTER_ACCEPTED = "RosterAccepted"
    ROSTER_REFUSED = "RosterRefused"
    PEER_REFUSED = "PeerRefused"
    CHECKPOINT_SIGNED = "CheckpointSigned"
    CHECKPOINT_COSIGNED = "CheckpointCosigned"
    WITNESS_ALARMED = "WitnessAlarmed"
    KEY_ROTATED = "KeyRotated"
    PROPOSAL_PUT = "ProposalPut"
    PROPOSAL_SIGNED = "ProposalSigned"
    PROPOSAL_CLOSED = "ProposalClosed"
    PLAN_PROPOSED = "PlanProposed"
    PLAN_APPROVED = "PlanApproved"
    PLAN_REFUSED = "PlanRefused"
    TRAINING_STARTED = "TrainingStarted"
    TRAINING_ROUND_DONE = "TrainingRoundDone"
    TRAINING_REFUSED = "TrainingRefused"
    TRAINING_FINISHED = "TrainingFinished"
    MODEL_REGISTERED = "ModelRegistered"
    INPUT_REFUSED = "InputRefused"
    LOG_READ = "LogRead"
    MEMBER_SUSPENDED = "MemberSuspended"
    MEMBER_REINSTATED = "MemberReinstated"
    GRANT_ENDED = "GrantEnded"
    DEVICE_CHANGED = "DeviceChanged"
    TOKEN_REVOKED = "TokenRevoked"
    MEMBER_INVITED = "MemberInvited"
    DEVICE_CERTIFICATE_ISSUED = "DeviceCertificateIssued"
    DEVICE_CERTIFICATE_RENEWED = "DeviceCertificateRenewed"
    FINDING_OPENED = "FindingOpened"
    FINDING_ACKNOWLEDGED = "FindingAcknowledged"
    FINDING_RESOLVED = "FindingResolved"
    ACCESS_ROWS_SEALED = "AccessRowsSealed"
    ACCESS_ROWS_ACCEPTED = "AccessRowsAccepted"
    REPLICA_DEGRADED = "ReplicaDegraded"
    REPLICA_HEALED = "ReplicaHealed"
    PACK_COMPACTED = "PackCompacted"
    INDEX_REBUILT = "IndexRebuilt"
    KEY_DESTROYED = "KeyDestroyed"
    GRADE_UNLOCKED = "GradeUnlocked"
    GRADE_LOCKED = "GradeLocked"
    ROOT_KEY_CHANGED = "RootKeyChanged"
    STUDY_REGRADED = "StudyRegraded"
    SIGN_IN_RESET = "SignInReset"
    SIGN_IN_RESET_CONFIRMED = "SignInResetConfirmed"
    SIGN_IN_RESET_DISOWNED = "SignInResetDisowned"
    STORAGE_COMMITTED = "StorageCommitted"

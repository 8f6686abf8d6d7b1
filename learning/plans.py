"""The training plan and a site's decision on it: two signed records, and the rule between them.

A plan is declarative: it names a network of our registry, what is learned, which images are asked for, the
schedule and the bounds of an update, and (by digest) the exact code that trains. It holds no code. A site
decides on the plan's digest, so one changed number is another plan. `gate` is the whole rule; who evaluates
consent is `cohort`, who enforces the bounds outside the trainer is `egress`.
Format: docs/formats/training-plan.md.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar, Self

from consent.errors import Invalid, Sentence
from consent.fields import Fields
from consent.signed import Signed

MAX_ROUNDS = 500
MAX_SITES = 1000
MAX_LABELS = 100
MIN_SIDE_PIXELS = 8
MAX_SIDE_PIXELS = 512
MAX_EXAMPLES_PER_SITE = 200_000
MAX_DEADLINE_SECONDS = 14 * 24 * 3600
MAX_TITLE_CHARACTERS = 120
MAX_PURPOSE_CHARACTERS = 2000
MIN_COHORT_PATIENTS = 5
"""No plan may train on fewer patients than this at a site."""

LABEL_ATTRIBUTES = {
    "PrimaryAnatomicStructureSequence": 0x00082228,
    "AnatomicRegionSequence": 0x00082218,
    "ViewCodeSequence": 0x00540220,
}
"""Coded attributes that may carry a label: PS3.15 Table E.1-1 lists none of them, so de-identification keeps
their codes. A plan names one of these and never free text."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_CODE = re.compile(r"[A-Za-z0-9._+-]{1,16}")


class Network(StrEnum):
    """The registry of networks (`networks.declared_arrays` has their parameters, `tasks` their layers)."""

    SMALL_CNN = "small-cnn"


class Verdict(StrEnum):
    """What a site says to a plan."""

    APPROVE = "approve"
    REFUSE = "refuse"


class Refusal(StrEnum):
    """Why a site did not train: the fixed words that reach the researcher, and nothing else does."""

    NOT_APPROVED = "This site has not approved the plan."
    REFUSED = "This site refused the plan."
    ENDED = "This site's approval has ended."
    UNKNOWN_PLAN = "This site does not know the plan."
    OTHER_CODE = "The training code is not the code that the plan names."
    TOO_MANY_ROUNDS = "The run asks for more rounds than this site approved."
    TOO_FEW_PATIENTS = "Too few patients here consented to research and match the plan."
    OUT_OF_BOUNDS = "The update broke the plan's bounds and was withheld."
    FAILED = "Training failed at this site."
    UNAVAILABLE = "This site cannot train now."


@dataclass(frozen=True)
class Model:
    """Which network, and how wide: `width` channels in its first layer, `hidden` units before the last."""

    network: Network = Network.SMALL_CNN
    width: int = 16
    hidden: int = 64

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        fields = Fields(data, "plan's model")
        return cls(
            fields.choice("network", Network),
            fields.integer("width", low=1, high=128),
            fields.integer("hidden", low=1, high=1024),
        )


@dataclass(frozen=True)
class Labels:
    """Classification by a coded attribute: item 1 of `attribute` whose scheme is `scheme`; classes by code value."""

    attribute: str
    scheme: str
    codes: tuple[str, ...]

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        fields = Fields(data, "plan's labels")
        labels = cls(fields.text("attribute"), fields.text("scheme"), fields.texts("codes", limit=MAX_LABELS))
        if labels.attribute not in LABEL_ATTRIBUTES:
            raise Invalid(
                Sentence("A label cannot be read from %(attribute)s.", attribute=repr(labels.attribute[:64])),
                mend=Sentence("Use one of %(choices)s.", choices=", ".join(LABEL_ATTRIBUTES)),
            )
        if not all(_CODE.fullmatch(code) for code in (labels.scheme, *labels.codes)):
            raise Invalid("A code or coding scheme is not 1 to 16 characters of letters, digits and . _ + -.")
        if len(labels.codes) < 2 or len(set(labels.codes)) != len(labels.codes):
            raise Invalid("A classification needs at least two different codes.")
        return labels


@dataclass(frozen=True)
class Cohort:
    """Which images are asked for; every one also needs its patient's consent to research, checked each round."""

    modality: str
    body_part: str | None = None
    minimum_patients: int = MIN_COHORT_PATIENTS

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        fields = Fields(data, "plan's cohort")
        cohort = cls(
            fields.text("modality", limit=16),
            fields.optional_text("body_part", limit=16),
            fields.integer("minimum_patients", low=MIN_COHORT_PATIENTS, high=MAX_EXAMPLES_PER_SITE),
        )
        if not re.fullmatch(r"[A-Z0-9_ ]{1,16}", cohort.modality):
            raise Invalid("A modality is upper-case letters and digits, for example CT.")
        return cohort


@dataclass(frozen=True)
class Image:
    """What becomes of a picture: grey, resized to rows × columns, stored range mapped to 0..1."""

    rows: int
    columns: int

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        fields = Fields(data, "plan's image")
        return cls(
            fields.integer("rows", low=MIN_SIDE_PIXELS, high=MAX_SIDE_PIXELS),
            fields.integer("columns", low=MIN_SIDE_PIXELS, high=MAX_SIDE_PIXELS),
        )


@dataclass(frozen=True)
class HoldOut:
    """What a site keeps aside to measure on, never to train on.

    With `code`: images whose label item carries this modifier code (a reference set). Without: `fraction` of the
    patients, chosen by a hash of the project pseudonym, so a patient is never on both sides.
    """

    fraction: float = 0.2
    code: str | None = None

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        fields = Fields(data, "plan's hold-out")
        code = fields.optional_text("code", limit=16)
        if code is not None and not _CODE.fullmatch(code):
            raise Invalid("The hold-out's code is not 1 to 16 characters of letters, digits and . _ + -.")
        return cls(fields.number("fraction", low=0.05, high=0.5), code)


@dataclass(frozen=True)
class Training:
    """Stochastic gradient descent at a site in one round, and the longest step that may leave it (L2 norm)."""

    learning_rate: float = 0.05
    momentum: float = 0.9
    batch_size: int = 32
    local_epochs: int = 1
    update_norm_max: float = 25.0
    seed: int = 1

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        fields = Fields(data, "plan's training")
        return cls(
            fields.number("learning_rate", low=1e-7, high=10),
            fields.number("momentum", low=0, high=0.999),
            fields.integer("batch_size", low=1, high=1024),
            fields.integer("local_epochs", low=1, high=100),
            fields.number("update_norm_max", low=1e-3, high=1e6),
            fields.integer("seed", high=2**31 - 1),
        )


@dataclass(frozen=True)
class Schedule:
    """Rounds and deadlines. `minimum_sites` is the k of k-of-n: fewer answers void the round and end the run."""

    rounds: int
    minimum_sites: int = 2
    round_seconds: int = 600
    deadline_seconds: int = 6 * 3600

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        fields = Fields(data, "plan's schedule")
        return cls(
            fields.integer("rounds", low=1, high=MAX_ROUNDS),
            fields.integer("minimum_sites", low=2, high=MAX_SITES),
            fields.integer("round_seconds", low=5, high=MAX_DEADLINE_SECONDS),
            fields.integer("deadline_seconds", low=10, high=MAX_DEADLINE_SECONDS),
        )


@dataclass(frozen=True)
class TrainingPlan:
    """Everything that a site is asked to agree to. `app` is the SHA-256 of the code bundle that trains.

    `baseline`: each site also trains alone on its own images, and reports only how well that does.
    `differential_privacy` and `secure_aggregation` are False until this version can do them, and say so.
    """

    title: str
    purpose: str
    researcher: str
    model: Model
    labels: Labels
    cohort: Cohort
    image: Image
    holdout: HoldOut
    training: Training
    schedule: Schedule
    baseline: bool
    app: str

    KIND: ClassVar[str] = "training-plan"
    VERSION: ClassVar[int] = 1

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        data = asdict(self)
        data["labels"]["codes"] = list(self.labels.codes)
        data["model"]["network"] = self.model.network.value
        return data | {"privacy": {"differential_privacy": False, "secure_aggregation": False}}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Raises Invalid when a field is missing, of the wrong type or out of its bounds."""
        fields = Fields(data, "training plan")
        privacy = Fields(fields.mapping("privacy"), "plan's privacy")
        if privacy.flag("differential_privacy") or privacy.flag("secure_aggregation"):
            raise Invalid(
                "This plan asks for a privacy measure that this version cannot carry out.",
                mend="Upgrade, or set differential_privacy and secure_aggregation to false.",
            )
        app = fields.text("app")
        if not _DIGEST.fullmatch(app):
            raise Invalid("The plan's 'app' is not a SHA-256 in hexadecimal.")
        return cls(
            fields.text("title", limit=MAX_TITLE_CHARACTERS),
            fields.text("purpose", limit=MAX_PURPOSE_CHARACTERS),
            fields.text("researcher", limit=128),
            Model.from_json(fields.mapping("model")),
            Labels.from_json(fields.mapping("labels")),
            Cohort.from_json(fields.mapping("cohort")),
            Image.from_json(fields.mapping("image")),
            HoldOut.from_json(fields.mapping("holdout")),
            Training.from_json(fields.mapping("training")),
            Schedule.from_json(fields.mapping("schedule")),
            fields.flag("baseline"),
            app,
        )


@dataclass(frozen=True)
class PlanDecision:
    """A site's word on one plan, signed with the site's key. It names the role that decided, never the person.

    `sequence` counts the site's decisions on this plan from 1: the highest one counts.
    """

    plan: str
    site: str
    verdict: Verdict
    role: str
    max_rounds: int
    sequence: int
    reason: str = ""

    KIND: ClassVar[str] = "plan-decision"
    VERSION: ClassVar[int] = 1

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"verdict": self.verdict.value}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Raises Invalid."""
        fields = Fields(data, "plan decision")
        plan = fields.text("plan")
        if not _DIGEST.fullmatch(plan):
            raise Invalid("The decision's 'plan' is not a SHA-256 in hexadecimal.")
        return cls(
            plan,
            fields.text("site", limit=64),
            fields.choice("verdict", Verdict),
            fields.text("role", limit=64),
            fields.integer("max_rounds", high=MAX_ROUNDS),
            fields.integer("sequence", low=1, high=2**31),
            fields.text("reason", limit=500, empty=True),
        )


@dataclass(frozen=True)
class Ask:
    """What a run asks of a site in one message: the bundle it came with, the plan it names, the round."""

    app: str
    plan: str
    round: int


def gate(
    plan: Signed[TrainingPlan] | None,
    decision: Signed[PlanDecision] | None,
    ask: Ask,
    *,
    site: str,
    installed_app: str,
    now: datetime,
) -> Refusal | None:
    """May this site take part in this message? None when it may, else the words that say why not.

    `installed_app` is the digest of the code that this site would run: the bytes that came with the run, the
    plan and the installed code must all be the same. The evaluation after the last round counts as that round.
    """
    if plan is None or plan.digest != ask.plan:
        return Refusal.UNKNOWN_PLAN
    if decision is None or decision.body.plan != plan.digest or decision.body.site != site:
        return Refusal.NOT_APPROVED
    if decision.body.verdict is not Verdict.APPROVE:
        return Refusal.REFUSED
    if decision.expired(now) or plan.expired(now):
        return Refusal.ENDED
    if not ask.app == plan.body.app == installed_app:
        return Refusal.OTHER_CODE
    if ask.round > min(decision.body.max_rounds, plan.body.schedule.rounds):
        return Refusal.TOO_MANY_ROUNDS
    return None

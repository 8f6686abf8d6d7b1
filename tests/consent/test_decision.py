"""`decide` in words: what each rule permits, and what a refusal says."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from consent.decision import Deny, Facts, Permit, Resource, decide
from consent.emergency import EmergencyClaim
from consent.errors import Denied
from consent.obligations import Deidentify, ExpireAt, Notify, ReviewWithin, Watermark
from consent.principals import PEOPLE, Principal
from consent.vocabulary import Action, Grade, Purpose, ResourceKind, Right, Role
from tests.support.consents import (
    ABROAD,
    ELSEWHERE,
    HOME,
    NOW,
    compiled,
    next_version,
    person,
    request,
    signed_directive,
    signed_grant,
    study,
)

CONSENT = signed_directive()
RESEARCH = signed_directive(chain="research", research=True, purposes=frozenset(), rights=frozenset())
DEVICE = Principal("CT1", Role.DEVICE, "CT1", HOME, attributes=frozenset({"store", "commit"}))
MEMBER = Principal(ABROAD, Role.MEMBER, "Central", ABROAD)
JOB = Principal("training", Role.JOB, "training", HOME)


def answer(who: Principal, action: Action = Action.VIEW, *, facts: Facts | None = None, **asked: Any) -> Any:
    return decide(compiled(), request(who, action, **asked), facts or Facts())


def node(kind: ResourceKind, home: str = HOME) -> Resource:
    return Resource(kind, home, None, home)


@pytest.mark.requirement("U1")
def test_a_clinician_sees_patients_in_their_care_with_a_watermark() -> None:
    """Relationship and purpose of care open a study; the permit owes the watermark and says why."""
    verdict = answer(person(), facts=Facts(relationship=True))

    assert verdict == Permit((Watermark(),), ("You treat this patient.",))


@pytest.mark.requirement("U1")
@pytest.mark.parametrize(
    ("role", "words"),
    [
        (Role.ADMINISTRATOR, "IT staff open no images."),
        (Role.SECURITY_OFFICER, "A security officer reads the log, not images."),
        (Role.HUB_OPERATOR, "The hub sees no patient."),
        (
            Role.RESEARCHER,
            "Researchers work with de-identified data only, through an approved training plan.",
        ),
        (Role.CLINICIAN, "You have no treatment relationship with this patient."),
    ],
)
def test_a_refusal_names_its_reason(role: Role, words: str) -> None:
    """Each role that may not open images is told why, in a sentence."""
    verdict = answer(person(role))

    assert verdict == Deny((words,))


@pytest.mark.requirement("U1")
def test_a_forbid_wins_over_a_relationship() -> None:
    """An administrator who is also entered as treating a patient still opens no image."""
    verdict = answer(person(Role.ADMINISTRATOR), facts=Facts(relationship=True))

    assert not verdict.permitted


@pytest.mark.requirement("U1")
def test_a_disabled_account_does_nothing() -> None:
    """A disabled clinician is refused even what a relationship allows."""
    verdict = answer(person(active=False), facts=Facts(relationship=True))

    assert verdict.reasons == ("This account is disabled.",)


@pytest.mark.requirement("U1")
@pytest.mark.parametrize("action", [Action.VIEW, Action.DOWNLOAD, Action.PRINT])
def test_restricted_studies_need_a_second_factor(action: Action) -> None:
    """A relationship alone does not open grade 3; with a second factor it does; a chief needs neither."""
    restricted = study(grade=Grade.RESTRICTED)
    related = Facts(relationship=True)

    plain = answer(person(), action, resource=restricted, facts=related)
    strong = answer(person(second_factor=True), action, resource=restricted, facts=related)
    chief = answer(person(Role.CHIEF_PHYSICIAN), action, resource=restricted)

    assert plain == Deny(("Studies of this grade need a second factor at sign-in.",))
    assert strong.permitted
    assert chief.permitted


@pytest.mark.requirement("U1")
def test_images_are_not_opened_for_operations() -> None:
    """A purpose other than care is refused by name, relationship or not."""
    verdict = answer(person(), purpose=Purpose.OPERATIONS, facts=Facts(relationship=True))

    assert verdict.reasons == ("Images are opened for care; this purpose does not allow it.",)


@pytest.mark.requirement("U3")
def test_an_emergency_opens_marked_told_limited_and_reviewed() -> None:
    """Break-glass is a permit that owes watermark, notice, review and an end one hour after the claim."""
    claim = EmergencyClaim("unconscious, suspected stroke", NOW - timedelta(minutes=10))
    verdict = answer(person(), emergency=claim)

    assert verdict.permitted
    assert set(verdict.obligations) == {
        Watermark(),
        Notify(Role.SECURITY_OFFICER),
        ReviewWithin(72.0),
        ExpireAt(NOW + timedelta(minutes=50)),
    }


@pytest.mark.requirement("U3")
def test_an_overdue_review_escalates_but_never_blocks() -> None:
    """Somebody whose last review is overdue still gets in; the chief physician is told too."""
    claim = EmergencyClaim("stroke", NOW)
    verdict = answer(person(), emergency=claim, facts=Facts(emergency_review_overdue=True))

    assert verdict.permitted
    assert Notify(Role.CHIEF_PHYSICIAN) in verdict.obligations


@pytest.mark.requirement("U3")
@pytest.mark.parametrize(
    ("claim", "words"),
    [
        (EmergencyClaim("  ", NOW), "An emergency needs a reason in words."),
        (EmergencyClaim("x" * 501, NOW), "An emergency needs a reason in words."),
        (
            EmergencyClaim("stroke", NOW - timedelta(hours=1)),
            "The emergency access has run out; declare it again if it still holds.",
        ),
        (EmergencyClaim("stroke", NOW + timedelta(seconds=1)), "The emergency is dated in the future."),
    ],
)
def test_a_bad_emergency_claim_says_what_is_wrong(claim: EmergencyClaim, words: str) -> None:
    """A claim without a reason, run out or from the future opens nothing and says so."""
    verdict = answer(person(), emergency=claim)

    assert not verdict.permitted
    assert words in verdict.reasons


@pytest.mark.requirement("U3")
def test_an_emergency_is_no_way_around_the_grant_of_another_hospital() -> None:
    """Break-glass opens only one's own hospital's studies."""
    verdict = answer(person(node=ABROAD), emergency=EmergencyClaim("stroke", NOW))

    assert verdict.reasons == ("There is no grant of this study for you.",)


@pytest.mark.requirement("U2", "E3")
def test_a_living_grant_opens_the_study_abroad_until_it_ends() -> None:
    """A clinician of the receiving hospital views under watermark until the grant's own end."""
    facts = Facts(grants=(signed_grant(CONSENT),), directives=(CONSENT,))
    verdict = answer(person(node=ABROAD), facts=facts)

    assert verdict.obligations == (Watermark(), ExpireAt(NOW + timedelta(hours=24)))
    assert verdict.expires == NOW + timedelta(hours=24)


@pytest.mark.requirement("U2", "E2", "E4")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"expires": NOW}, "The grant has expired."),
        ({"record_id": "taken-back"}, "The grant was revoked."),
        ({"person": "wang"}, "The grant is for another person."),
        ({"purpose": Purpose.EMERGENCY}, "The grant is for another purpose."),
        ({"recipient": ELSEWHERE}, "The grant is for another hospital."),
        ({"rights": frozenset({Right.DOWNLOAD})}, "The grant does not include this right."),
        ({"not_before": NOW + timedelta(minutes=1)}, "The grant has not begun yet."),
        ({"issuer": ABROAD}, "The grant is not signed by the study's home hospital."),
        ({"consent": "00" * 32}, "The consent that the grant rests on is not on record here."),
        ({"patient": "pt_2"}, "The consent that the grant names is another patient's or another hospital's."),
        ({"study": "st_2"}, "There is no grant of this study for you."),
    ],
)
def test_a_dead_grant_says_why_it_does_not_open(change: dict[str, Any], words: str) -> None:
    """Every way in which a grant can fail has its own sentence."""
    grant = signed_grant(CONSENT, **change)
    facts = Facts(grants=(grant,), directives=(CONSENT,), revoked=frozenset({"taken-back"}))
    verdict = answer(person(node=ABROAD), facts=facts)

    assert verdict == Deny((words,))


@pytest.mark.requirement("U2")
def test_a_grant_does_not_reach_a_grade_above_its_own() -> None:
    """A study whose grade was raised after the grant is closed under it."""
    facts = Facts(grants=(signed_grant(CONSENT, grade_max=Grade.ORDINARY),), directives=(CONSENT,))
    verdict = answer(person(node=ABROAD), resource=study(grade=Grade.SENSITIVE), facts=facts)

    assert verdict.reasons == ("The study's grade has risen above what was granted.",)


@pytest.mark.requirement("E2")
def test_the_later_of_two_grants_counts() -> None:
    """With two living grants the permit lasts as long as the longer one."""
    longer = signed_grant(CONSENT, record_id="grant-2", expires=NOW + timedelta(days=2))
    facts = Facts(grants=(signed_grant(CONSENT), longer), directives=(CONSENT,))

    assert answer(person(node=ABROAD), facts=facts).expires == NOW + timedelta(days=2)


@pytest.mark.requirement("E4")
def test_a_permit_lasts_only_as_long_as_a_grant_that_confers_its_right() -> None:
    """A longer grant for another right does not lengthen viewing."""
    download = signed_grant(
        CONSENT, record_id="grant-2", rights=frozenset({Right.DOWNLOAD}), expires=NOW + timedelta(days=2)
    )
    facts = Facts(grants=(signed_grant(CONSENT), download), directives=(CONSENT,))

    assert answer(person(node=ABROAD), facts=facts).expires == NOW + timedelta(hours=24)


@pytest.mark.requirement("E1", "E4")
def test_suspension_of_a_member_ends_everything_between_hospitals() -> None:
    """A living grant does not help once the other hospital is not active, nor its own requests."""
    facts = Facts(grants=(signed_grant(CONSENT),), directives=(CONSENT,), member_active=False)
    words = ("This hospital is not an active member of the region.",)

    assert answer(person(node=ABROAD), facts=facts).reasons == words
    assert answer(MEMBER, Action.FETCH, facts=facts).reasons == words
    assert answer(MEMBER, Action.REQUEST, facts=facts).reasons == words
    assert answer(person(), facts=Facts(relationship=True, member_active=False)).permitted


@pytest.mark.requirement("E3")
def test_a_member_fetches_only_under_a_living_grant() -> None:
    """The receiving hospital pulls the pack while the grant lives, and is told why not otherwise."""
    alive = Facts(grants=(signed_grant(CONSENT),), directives=(CONSENT,))
    other = replace(MEMBER, id=ELSEWHERE, node=ELSEWHERE)

    assert answer(MEMBER, Action.FETCH, facts=alive).expires == NOW + timedelta(hours=24)
    assert answer(MEMBER, Action.FETCH).reasons == ("There is no grant of this study for this hospital.",)
    assert answer(other, Action.FETCH, facts=alive).reasons == ("The grant is for another hospital.",)
    assert not answer(MEMBER, Action.VIEW, facts=alive).permitted


@pytest.mark.requirement("E3")
def test_a_member_finds_no_more_than_consent_allows() -> None:
    """Discovery answers for patients whose consent names the asking hospital and purpose."""
    elsewhere = signed_directive(recipients=(ELSEWHERE,))

    assert answer(MEMBER, Action.SEARCH, facts=Facts(directives=(CONSENT,))).permitted
    assert answer(MEMBER, Action.SEARCH).reasons == (
        "The patient has not consented to sharing with this hospital.",
    )
    assert answer(MEMBER, Action.SEARCH, facts=Facts(directives=(elsewhere,))).reasons == (
        "The patient's consent does not name this hospital.",
    )


@pytest.mark.requirement("E2")
def test_a_consent_of_another_patient_or_node_counts_for_nothing() -> None:
    """Directives are matched to the resource's patient and home before they count."""
    other_patient = signed_directive(patient="pt_2")
    other_issuer = signed_directive(issuer=ELSEWHERE)

    for directive in (other_patient, other_issuer):
        assert not answer(MEMBER, Action.SEARCH, facts=Facts(directives=(directive,))).permitted


@pytest.mark.requirement("E2", "E3")
@pytest.mark.parametrize("action", [Action.GRANT, Action.REVOKE, Action.RECORD_CONSENT])
def test_sharing_is_the_treating_clinicians_word(action: Action) -> None:
    """Consent and grants are for a treating clinician or a chief of the home hospital; nobody else."""
    related = Facts(relationship=True)

    assert answer(person(), action, facts=related).permitted
    assert answer(person(Role.CHIEF_PHYSICIAN), action).permitted
    assert answer(person(), action).reasons == ("You have no treatment relationship with this patient.",)
    assert answer(person(Role.ADMINISTRATOR), action, facts=related).reasons == (
        "Only clinicians record consent and issue or revoke grants.",
    )
    assert answer(person(node=ABROAD), action, facts=related).reasons == (
        "Only the study's home hospital does this.",
    )


@pytest.mark.requirement("E3")
def test_a_clinician_asks_other_hospitals_only() -> None:
    """One asks for what lies elsewhere; what lies here is opened."""
    own = answer(person(), Action.REQUEST, facts=Facts(relationship=True))

    assert answer(person(node=ABROAD), Action.REQUEST).permitted
    assert answer(MEMBER, Action.REQUEST).permitted
    assert own.reasons == ("This study is at your own hospital; open it there.",)


@pytest.mark.requirement("C1")
def test_only_a_registered_device_sends_and_only_to_its_own_node() -> None:
    """An unregistered device, and one of another hospital, bring nothing in."""
    registered = Facts(device_registered=True)
    foreign = replace(DEVICE, node=ABROAD)

    assert answer(DEVICE, Action.INGEST, facts=registered).permitted
    assert answer(DEVICE, Action.INGEST).reasons == ("This device is not registered at this node.",)
    assert not answer(foreign, Action.INGEST, facts=registered).permitted


@pytest.mark.requirement("C1")
@pytest.mark.parametrize("role", [Role.JOB, Role.ADMINISTRATOR, Role.CLINICIAN, Role.CHIEF_PHYSICIAN])
def test_the_hospital_brings_in_its_own_studies(role: Role) -> None:
    """Import and staff add to their own node's archive only; researchers and officers add nothing."""
    assert answer(person(role), Action.INGEST).permitted
    assert answer(person(role, node=ABROAD), Action.INGEST).reasons == (
        "Studies are stored at the hospital where they are made.",
    )
    assert not answer(person(Role.RESEARCHER), Action.INGEST).permitted


@pytest.mark.requirement("R2", "U6")
def test_training_needs_plan_purpose_and_consent_and_owes_deidentification() -> None:
    """Each missing condition is named; all together permit the de-identified use."""
    ready = Facts(plan_approved=True, directives=(RESEARCH,))
    research = Purpose.RESEARCH

    assert answer(JOB, Action.TRAIN, purpose=research, facts=ready).obligations == (Deidentify(),)
    assert answer(JOB, Action.TRAIN, facts=ready).reasons == ("Training needs the purpose research.",)
    assert answer(JOB, Action.TRAIN, purpose=research, facts=Facts(directives=(RESEARCH,))).reasons == (
        "This hospital has not approved the training plan.",
    )
    assert answer(JOB, Action.TRAIN, purpose=research, facts=Facts(plan_approved=True)).reasons == (
        "The patient has not consented to research.",
    )
    only_care = Facts(plan_approved=True, directives=(CONSENT,))
    assert answer(JOB, Action.TRAIN, purpose=research, facts=only_care).reasons == (
        "The patient's consent does not include research.",
    )
    withdrawn = Facts(plan_approved=True, directives=(RESEARCH, next_version(RESEARCH, withdrawn=True)))
    assert (
        "The patient withdrew consent."
        in answer(JOB, Action.TRAIN, purpose=research, facts=withdrawn).reasons
    )


@pytest.mark.parametrize(
    ("role", "action", "kind"),
    [
        (Role.ADMINISTRATOR, Action.ADMINISTER, ResourceKind.NODE),
        (Role.HUB_OPERATOR, Action.ADMINISTER, ResourceKind.NODE),
        (Role.SECURITY_OFFICER, Action.READ_LOG, ResourceKind.LOG),
        (Role.SECURITY_OFFICER, Action.APPROVE_PLAN, ResourceKind.PLAN),
        (Role.CHIEF_PHYSICIAN, Action.APPROVE_PLAN, ResourceKind.PLAN),
        (Role.RESEARCHER, Action.LAUNCH_RUN, ResourceKind.RUN),
    ],
)
def test_offices_do_their_own_work_and_no_other(role: Role, action: Action, kind: ResourceKind) -> None:
    """Each office has its action; a clinician has none of them and is told whose it is."""
    clinician = answer(person(), action, resource=node(kind), facts=Facts(relationship=True))

    assert answer(person(role), action, resource=node(kind)).permitted
    assert not clinician.permitted
    assert clinician.reasons != ("No rule permits this.",)


@pytest.mark.requirement("U1", "U3")
@pytest.mark.parametrize(
    ("action", "kind", "roles", "own"),
    [
        (
            Action.RECORD_CARE,
            ResourceKind.PATIENT,
            {Role.CHIEF_PHYSICIAN, Role.ADMINISTRATOR},
            "Nobody records their own treatment relationship.",
        ),
        (
            Action.REVIEW_EMERGENCY,
            ResourceKind.STUDY,
            {Role.CHIEF_PHYSICIAN, Role.SECURITY_OFFICER},
            "Nobody reviews their own emergency access.",
        ),
    ],
)
def test_what_is_done_for_others_is_never_done_for_oneself(
    action: Action, kind: ResourceKind, roles: set[Role], own: str
) -> None:
    """The offices do it for somebody else at their own node; a disabled account and everybody else do not."""
    other = Facts(another=True)

    for role in PEOPLE:
        assert answer(person(role), action, resource=node(kind), facts=other).permitted is (role in roles)
    for role in roles:
        assert answer(person(role), action, resource=node(kind)).reasons == (own,)
        assert not answer(person(role), action, resource=node(kind, ABROAD), facts=other).permitted
        assert not answer(person(role, active=False), action, resource=node(kind), facts=other).permitted


def test_an_office_ends_at_the_node() -> None:
    """An administrator of one hospital does not administer another, nor read its log as its officer."""
    abroad = node(ResourceKind.NODE, ABROAD)
    log = node(ResourceKind.LOG, ABROAD)

    assert not answer(person(Role.ADMINISTRATOR), Action.ADMINISTER, resource=abroad).permitted
    assert not answer(person(Role.SECURITY_OFFICER), Action.READ_LOG, resource=log).permitted


def test_every_refusal_has_words() -> None:
    """No combination of role, action and kind is refused in silence or with the last resort."""
    silent = []
    for role in Role:
        for action in Action:
            for kind in ResourceKind:
                for home in (HOME, ABROAD):
                    resource = Resource(kind, "x", "pt_1", home)
                    verdict = answer(person(role), action, resource=resource)
                    if not verdict.permitted and not verdict.reasons:
                        silent.append((role, action, kind, home))

    assert not silent


def test_a_verdict_is_raised_as_denied_with_its_reasons() -> None:
    """`or_raise` turns a Deny into the error that doors know, and gives a Permit back."""
    permit = answer(person(), facts=Facts(relationship=True))
    with pytest.raises(Denied) as refusal:
        answer(person()).or_raise()

    assert permit.or_raise() is permit
    assert refusal.value.reasons == ("You have no treatment relationship with this patient.",)


def test_names_from_outside_cannot_break_a_rule() -> None:
    """Quotes, newlines and Cedar syntax in an id are data."""
    nasty = 'x"\n} permit(principal, action, resource); //'
    verdict = answer(person(login=nasty), resource=study(id=nasty, department=nasty))

    assert verdict.reasons == ("You have no treatment relationship with this patient.",)

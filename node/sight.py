"""What a person may find, as a condition of the search itself: decisions turned into `Visible`."""

from __future__ import annotations

from datetime import datetime
from functools import cached_property

from consent.decision import CompiledPolicy, Facts, Request, Resource, decide
from consent.principals import Principal
from consent.verdict import Deny, Verdict
from consent.vocabulary import Action, Grade, Purpose, ResourceKind, Role
from node.index import Match, Visible

ANY_STUDY = "*"


class Sight:
    """One person's view at one moment. Every combination of grade, relationship and department is decided once."""

    def __init__(
        self, policy: CompiledPolicy, who: Principal, purpose: Purpose, now: datetime, node_id: str
    ) -> None:
        self.policy = policy
        self._who = who
        self._purpose = purpose
        self._now = now
        self._node_id = node_id
        self._places = (None, who.department) if who.department else (None,)
        self._verdicts: dict[tuple[Grade, bool, str | None], Verdict] = {}

    @cached_property
    def refusal(self) -> Deny | None:
        """The refusal when this person can find nothing at all, even of patients in their care."""
        verdicts = [self._decide(grade, True, place) for grade in Grade for place in self._places]
        refused = [verdict for verdict in verdicts if isinstance(verdict, Deny)]
        return refused[0] if len(refused) == len(verdicts) else None

    @cached_property
    def sees_all(self) -> bool:
        """Whether everybody's studies may be found, in somebody's care or not."""
        return self._visible_grades[0] == frozenset(Grade)

    def visible(self, patients: frozenset[str]) -> Visible:
        """What no row outside of may be shown; `patients` are those in this person's care. `shows` says the rest."""
        anybodys, own = self._visible_grades
        return Visible(anybodys, patients, own)

    @cached_property
    def _visible_grades(self) -> tuple[frozenset[Grade], frozenset[Grade]]:
        return self._grades(related=False), self._grades(related=True)

    def shows(self, match: Match, related: bool) -> bool:
        """Whether one answer may be shown, with its department too: a hospital's rules may name any."""
        return self._decide(match.grade, related, match.department).permitted

    def _grades(self, *, related: bool) -> frozenset[Grade]:
        """Grades of which something may be found; which departments' is for `shows` to say, row by row."""
        return frozenset(
            grade
            for grade in Grade
            if any(self._decide(grade, related, place).permitted for place in self._places)
        )

    def _decide(self, grade: Grade, related: bool, department: str | None) -> Verdict:
        key = (grade, related, department)
        if key not in self._verdicts:
            thing = Resource(ResourceKind.STUDY, ANY_STUDY, None, self._node_id, grade, department)
            request = Request(self._who, Action.SEARCH, thing, self._purpose, self._now)
            facts = Facts(relationship=related, device_registered=self._who.role is Role.DEVICE)
            self._verdicts[key] = decide(self.policy, request, facts)
        return self._verdicts[key]

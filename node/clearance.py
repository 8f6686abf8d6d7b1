"""What lets sealed bytes and keys of a study out to another hospital: a permit, with the question that it answers.

The exchange decides, because it knows the grants; the gateway hands out, and takes no word for it: it must be shown
the permit and checks that it is for this study, this use and this moment. Pure; nothing is decided here.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from consent.decision import Request
from consent.errors import Denied
from consent.verdict import Permit, Verdict
from consent.vocabulary import Action, ResourceKind

LASTS = timedelta(minutes=1)
"""How long a decision serves to hand something out; after that it must be made anew."""
RELEASES = frozenset({Action.FETCH})
OPENINGS = frozenset({Action.VIEW, Action.DOWNLOAD, Action.PRINT})


@dataclass(frozen=True)
class Clearance:
    """A permit and the request it was given for."""

    request: Request
    permit: Permit

    @classmethod
    def of(cls, request: Request, verdict: Verdict) -> Clearance:
        """Raises Denied with the verdict's reasons when it is a refusal."""
        return cls(request, verdict.or_raise())

    def require_study(self, study: str, home: str, actions: frozenset[Action], now: datetime) -> None:
        """Raise Denied unless one of `actions` on this study of `home` was permitted just now."""
        resource = self.request.resource
        self._require(resource.kind is ResourceKind.STUDY and resource.id == study, home, actions, now)

    def require_grant(self, patient: str, home: str, now: datetime) -> None:
        """Raise Denied unless granting access to studies of this patient of `home` was permitted just now."""
        resource = self.request.resource
        fits = resource.kind is ResourceKind.GRANT and resource.patient == patient
        self._require(fits, home, frozenset({Action.GRANT}), now)

    def _require(self, fits: bool, home: str, actions: frozenset[Action], now: datetime) -> None:
        asked, ends = self.request, self.permit.expires
        if not fits or asked.resource.home != home or asked.action not in actions:
            raise Denied("What was permitted is something else than this.", code="wrong-permit")
        if abs(now - asked.now) > LASTS or (ends is not None and now >= ends):
            raise Denied("What was permitted is over.", mend="Ask again.", code="stale-permit")

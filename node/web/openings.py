"""The viewing sessions that are open now, by id: what a frame request names instead of its purpose and reason.

Kept in memory and bounded. An id works only for the person who opened; whether the next frame may still be shown
is the gateway's decision each time, not this table's.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from consent.errors import NotFound
from consent.principals import Principal
from node.web.text import N_

if TYPE_CHECKING:
    from node.openings import Opening

MAX_OPENINGS: Final = 10_000


class Openings:
    """Remembers openings; the oldest go first when there are too many."""

    def __init__(self) -> None:
        self._by_id: OrderedDict[str, Opening] = OrderedDict()

    def put(self, opening: Opening) -> Opening:
        """Remember an opening that the gateway made."""
        self._by_id[opening.id] = opening
        while len(self._by_id) > MAX_OPENINGS:
            self._by_id.popitem(last=False)
        return opening

    def get(self, opening_id: str, who: Principal) -> Opening:
        """The opening, if it is this person's. Raises NotFound."""
        opening = self._by_id.get(opening_id)
        if opening is None or (opening.who.id, opening.who.node) != (who.id, who.node):
            raise NotFound(
                N_("This viewing session is not open."), mend=N_("Open the study again."), code="opening-gone"
            )
        return opening

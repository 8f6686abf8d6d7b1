"""Statements read back what they wrote, and refuse what breaks a bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consent.errors import AccordError, Corrupt, Invalid
from consent.vocabulary import Purpose, Right
from federation.protocol import (
    MAX_HOURS,
    MAX_LEASE_OBJECTS,
    GrantEnded,
    Lease,
    LeaseRequest,
    Particulars,
    ShredReceipt,
    StudyRequest,
)
from tests.federation.conftest import identity_of

NOW = datetime(2026, 11, 22, 9, 0, tzinfo=UTC)
REQUEST = StudyRequest("a-general", "li", Purpose.TREATMENT, frozenset({Right.VIEW}), 24, b"sealed")
LEASE_REQUEST = LeaseRequest(
    "a-general", "ab" * 16, "st_" + "a" * 26, ("in_a", "in_a.a"), "li", Purpose.TREATMENT, "v", "cd" * 32, 3
)
LEASE = Lease("ab" * 32, "cd" * 32, NOW + timedelta(milliseconds=1500), b"sealed")
ENDED = GrantEnded("ab" * 16, "b-central", "withdrawn")
RECEIPT = ShredReceipt("ab" * 16, "st_" + "a" * 26, "a-general", "ended", "overwritten and removed", 7, NOW)


@pytest.mark.parametrize("body", [REQUEST, LEASE_REQUEST, LEASE, ENDED, RECEIPT], ids=lambda b: b.KIND)
def test_statement_reads_back_what_it_wrote(body: Any) -> None:
    """JSON and back is the same statement."""
    assert type(body).from_json(body.to_json()) == body


BAD: list[tuple[Any, dict[str, Any]]] = [
    (REQUEST, {"home": "Ä"}),
    (REQUEST, {"rights": []}),
    (REQUEST, {"rights": ["own"]}),
    (REQUEST, {"hours": 0}),
    (REQUEST, {"hours": MAX_HOURS + 1}),
    (REQUEST, {"hours": True}),
    (REQUEST, {"sealed": "%%%"}),
    (REQUEST, {"sealed": "A" * 40_000}),
    (REQUEST, {"person": "p" * 500}),
    (LEASE_REQUEST, {"objects": ["in_a", "in_a"]}),
    (LEASE_REQUEST, {"objects": ["../../etc/passwd"]}),
    (LEASE_REQUEST, {"objects": [f"in_{n}" for n in range(MAX_LEASE_OBJECTS + 1)]}),
    (LEASE_REQUEST, {"nonce": "cd"}),
    (LEASE_REQUEST, {"study": "../x"}),
    (LEASE_REQUEST, {"roster": 0}),
    (LEASE, {"until_ms": 2**60}),
    (LEASE, {"until_ms": 1.5}),
    (LEASE, {"grant": "AB" * 32}),
    (ENDED, {"holder": ""}),
    (ENDED, {"reason": None}),
    (RECEIPT, {"size_bytes": -1}),
    (RECEIPT, {"shredded": "now"}),
]


@pytest.mark.requirement("F4")
@pytest.mark.parametrize(("body", "change"), BAD, ids=lambda value: str(value)[:40])
def test_statement_that_breaks_a_bound_is_refused(body: Any, change: dict[str, Any]) -> None:
    """Every field has a form; what breaks it is Invalid and names the field."""
    with pytest.raises(Invalid):
        type(body).from_json({**body.to_json(), **change})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.requirement("F4")
@settings(max_examples=120, deadline=None)
@given(st.sampled_from([REQUEST, LEASE_REQUEST, LEASE, ENDED, RECEIPT]), st.data())
def test_no_content_breaks_the_reader(body: Any, data: st.DataObject) -> None:
    """Whatever one field holds, reading ends in a statement or in one of our own errors."""
    content = body.to_json()
    content[data.draw(st.sampled_from(sorted(content)))] = data.draw(json_values)
    try:
        type(body).from_json(content)
    except AccordError:
        pass


@pytest.mark.requirement("E3", "T2")
async def test_particulars_open_at_the_home_and_for_their_request_only() -> None:
    """The envelope opens with the home's key, for the request it was made for; a changed bit opens nothing."""
    home, other = await identity_of("a-general"), await identity_of("b-central")
    particulars = Particulars("Dr Wang", "second opinion", accession_number="A-1", patient_id="P-1")
    sealed = particulars.seal(home.hpke.public_key(), "ab" * 16)

    assert Particulars.open(home.hpke, sealed, "ab" * 16) == particulars
    attempts: list[Callable[[], Particulars]] = [
        lambda: Particulars.open(other.hpke, sealed, "ab" * 16),
        lambda: Particulars.open(home.hpke, sealed, "ac" * 16),
        lambda: Particulars.open(home.hpke, sealed[:-1], "ab" * 16),
        lambda: Particulars.open(home.hpke, b"", "ab" * 16),
    ]
    for attempt in attempts:
        with pytest.raises(Corrupt):
            attempt()
    assert replace(particulars, reason="x") != particulars

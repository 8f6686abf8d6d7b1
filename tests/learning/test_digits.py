"""The digits corpus: what every site has in common, and what it has alone."""

from __future__ import annotations

from collections import Counter

import pytest

from learning.digits import OWN_SHARE, Digit, digits_of

SITES = 3


@pytest.fixture(params=[None, 160, 61], ids=["all", "160", "61"])
def parts(request: pytest.FixtureRequest) -> list[list[Digit]]:
    """Each site's part, whole or limited."""
    return [digits_of(site, SITES, limit=request.param) for site in range(SITES)]


@pytest.mark.requirement("R1")
def test_all_sites_measure_on_the_same_scans(parts: list[list[Digit]]) -> None:
    """The references are the same at every site, in the same order, and as many of each class but for one."""
    first, *others = [[digit.number for digit in part if digit.reference] for part in parts]
    assert first
    assert all(other == first for other in others)
    counts = Counter(digit.label for digit in parts[0] if digit.reference)
    assert len(counts) == 10
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.requirement("R1")
def test_no_site_trains_on_a_reference_or_on_anothers_scan(parts: list[list[Digit]]) -> None:
    """What is trained on is nobody's reference and lies at one site only."""
    references = {digit.number for part in parts for digit in part if digit.reference}
    trained = [digit.number for part in parts for digit in part if not digit.reference]
    assert len(set(trained)) == len(trained)
    assert not references & set(trained)


def test_the_split_is_skewed() -> None:
    """A site has most of its own classes and little of the others, limited or not."""
    for limit in (None, 160):
        for site in range(SITES):
            trained = [digit for digit in digits_of(site, SITES, limit=limit) if not digit.reference]
            own = sum(digit.label * SITES // 10 == site for digit in trained)
            assert 0.9 < own / len(trained) < 1
    assert 0.9 < OWN_SHARE < 1

"""The Merkle tree against RFC 6962's own recursive definitions."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consent.errors import Corrupt, Invalid
from node.audit.merkle import (
    EMPTY_ROOT,
    Frontier,
    check_consistency,
    check_inclusion,
    consistency_ranges,
    fold,
    inclusion_ranges,
    leaf_hash,
    node_hash,
    nodes_of,
    root_of,
)

LEAVES = [leaf_hash(str(n).encode()) for n in range(300)]


def mth(leaves: list[bytes]) -> bytes:
    """MTH(D[n]) word for word (RFC 6962 §2.1), over leaf hashes."""
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return sha256(b"\x01" + mth(leaves[:k]) + mth(leaves[k:])).digest()


def path(m: int, leaves: list[bytes]) -> list[bytes]:
    """PATH(m, D[n]) word for word (§2.1.1)."""
    if len(leaves) == 1:
        return []
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    if m < k:
        return [*path(m, leaves[:k]), mth(leaves[k:])]
    return [*path(m - k, leaves[k:]), mth(leaves[:k])]


def subproof(m: int, leaves: list[bytes], whole: bool) -> list[bytes]:
    """SUBPROOF(m, D[n], b) word for word (§2.1.2)."""
    if m == len(leaves):
        return [] if whole else [mth(leaves)]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    if m <= k:
        return [*subproof(m, leaves[:k], whole), mth(leaves[k:])]
    return [*subproof(m - k, leaves[k:], False), mth(leaves[:k])]


def hashes(ranges: list[tuple[int, int]]) -> list[bytes]:
    return [mth(LEAVES[start:end]) for start, end in ranges]


def test_published_roots_of_the_certificate_transparency_tree() -> None:
    """The eight leaves that every RFC 6962 implementation is tried with give the roots they all give."""
    data = [
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    ]
    leaves = [leaf_hash(bytes.fromhex(text)) for text in data]
    roots = [root_of(leaves[:size]).hex() for size in range(9)]
    assert roots[0] == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert roots[1] == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    assert roots[2] == "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"
    assert roots[8] == "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"


@pytest.mark.requirement("A1")
@given(st.integers(0, 300))
def test_the_frontier_gives_the_root_of_the_definition(size: int) -> None:
    """Appending one by one, with a stop and a restart in between, ends at MTH(D[n])."""
    frontier = Frontier()
    finished = {}
    for leaf in LEAVES[:size]:
        for (height, index), value in frontier.append(leaf):
            finished[(height, index)] = value
        frontier = Frontier.from_bytes(frontier.size, frontier.to_bytes())
    assert frontier.root == mth(LEAVES[:size])
    assert finished == {
        (height, index): mth(LEAVES[index << height : (index + 1) << height])
        for height in range(1, 9)
        for index in range(size >> height)
    }


@given(st.integers(1, 300), st.data())
def test_inclusion_proofs_are_the_definitions_and_hold(size: int, data: st.DataObject) -> None:
    """PATH by ranges equals PATH by recursion, and checks out."""
    index = data.draw(st.integers(0, size - 1))
    proof = hashes(inclusion_ranges(index, size))
    assert proof == path(index, LEAVES[:size])
    check_inclusion(index, size, LEAVES[index], proof, mth(LEAVES[:size]))


@given(st.integers(0, 300), st.integers(0, 300))
def test_consistency_proofs_are_the_definitions_and_hold(one: int, two: int) -> None:
    """PROOF by ranges equals PROOF by recursion, and checks out."""
    old, new = sorted((one, two))
    proof = hashes(consistency_ranges(old, new))
    assert proof == (subproof(old, LEAVES[:new], True) if old else [])
    check_consistency(old, new, proof, mth(LEAVES[:old]), mth(LEAVES[:new]))


@given(st.integers(1, 300), st.data())
def test_a_range_folds_from_its_complete_subtrees(size: int, data: st.DataObject) -> None:
    """Every range of a proof is the fold of aligned complete subtrees."""
    index = data.draw(st.integers(0, size - 1))
    for start, end in inclusion_ranges(index, size):
        parts = [mth(LEAVES[i << h : (i + 1) << h]) for h, i in nodes_of((start, end))]
        assert fold(parts) == mth(LEAVES[start:end])


def _damaged(proof: list[bytes]) -> list[list[bytes]]:
    flipped = [
        [*proof[:at], bytes([value[0] ^ 1]) + value[1:], *proof[at + 1 :]] for at, value in enumerate(proof)
    ]
    return [*flipped, proof[1:], [*proof, LEAVES[0]], [LEAVES[0], *proof], [*proof, b""], proof[:-1]]


@settings(max_examples=60)
@given(st.integers(2, 120), st.data())
def test_a_changed_inclusion_proof_never_holds(size: int, data: st.DataObject) -> None:
    """A flipped bit, a missing or added hash, another index, leaf or size: each is refused."""
    index = data.draw(st.integers(0, size - 1))
    proof, root, leaf = path(index, LEAVES[:size]), mth(LEAVES[:size]), LEAVES[index]
    for wrong in _damaged(proof):
        with pytest.raises(Corrupt):
            check_inclusion(index, size, leaf, wrong, root)
    for place in (-1, size, index + 1 if index + 1 < size else index - 1):
        with pytest.raises(Corrupt):
            check_inclusion(place, size, leaf, proof, root)
    with pytest.raises(Corrupt):
        check_inclusion(index, size, LEAVES[299], proof, root)


@settings(max_examples=60)
@given(st.integers(1, 119), st.data())
def test_a_changed_consistency_proof_never_holds(old: int, data: st.DataObject) -> None:
    """Rewritten history has no proof."""
    new = data.draw(st.integers(old + 1, 120))
    proof = subproof(old, LEAVES[:new], True)
    old_root, new_root = mth(LEAVES[:old]), mth(LEAVES[:new])
    for wrong in _damaged(proof):
        if wrong != proof:
            with pytest.raises(Corrupt):
                check_consistency(old, new, wrong, old_root, new_root)
    rewritten = [LEAVES[299], *LEAVES[1:new]]
    with pytest.raises(Corrupt, match="rewritten"):
        check_consistency(old, new, subproof(old, rewritten, True), old_root, mth(rewritten))


def test_edges_of_consistency() -> None:
    """The empty tree fits any tree with an empty proof; one size has one root; sizes do not run backwards."""
    root = mth(LEAVES[:5])
    check_consistency(0, 5, [], EMPTY_ROOT, root)
    check_consistency(5, 5, [], root, root)
    for old, new, proof, one, two in [
        (0, 5, [LEAVES[0]], EMPTY_ROOT, root),
        (0, 5, [], root, root),
        (5, 5, [], root, mth(LEAVES[1:6])),
        (6, 5, [], root, root),
        (3, 5, [], mth(LEAVES[:3]), root),
        (2, 4, [LEAVES[0]] * 64, mth(LEAVES[:2]), mth(LEAVES[:4])),
    ]:
        with pytest.raises(Corrupt):
            check_consistency(old, new, proof, one, two)


@pytest.mark.parametrize(("index", "size"), [(-1, 5), (5, 5), (0, 0)])
def test_there_is_no_proof_for_what_is_not_there(index: int, size: int) -> None:
    """Asked for an entry outside the tree, the answer names it."""
    with pytest.raises(Invalid, match="no entry"):
        inclusion_ranges(index, size)


def test_there_is_no_consistency_backwards() -> None:
    """A smaller tree does not extend a larger one."""
    with pytest.raises(Invalid, match="no earlier size"):
        consistency_ranges(6, 5)


def test_a_frontier_of_the_wrong_length_is_refused() -> None:
    """A damaged state row is noticed before anything is appended to it."""
    with pytest.raises(Corrupt, match="frontier"):
        Frontier.from_bytes(3, bytes(32))


def test_node_and_leaf_hashes_cannot_be_confused() -> None:
    """Different prefixes: a leaf that looks like two hashes is not their parent."""
    assert leaf_hash(LEAVES[0] + LEAVES[1]) != node_hash(LEAVES[0], LEAVES[1])

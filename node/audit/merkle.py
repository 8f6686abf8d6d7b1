"""The Merkle tree of RFC 6962 §2.1, as pure functions over hashes.

Holds hashing, the frontier that an appender carries, which subtrees a proof is made of, and the checking of
proofs. Leaves to `tiles` and `log` where hashes are kept. Names follow the RFC: a *range* `(start, end)` is
D[start:end], MTH(range) its hash; a *node* `(height, index)` is the complete subtree over
D[index·2^height : (index+1)·2^height].

Invariant: a `Frontier` of size n holds the MTHs of the complete subtrees that n's binary digits name, from
left to right, so its root is the root of the tree.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from consent.errors import Corrupt, Invalid

HASH_BYTES = 32
MAX_PROOF_HASHES = 63
EMPTY_ROOT = sha256(b"").digest()

Range = tuple[int, int]
Node = tuple[int, int]


def leaf_hash(record: bytes) -> bytes:
    """SHA-256(0x00 || record)."""
    return sha256(b"\x00" + record).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 || left || right)."""
    return sha256(b"\x01" + left + right).digest()


@dataclass
class Frontier:
    """The right edge of a growing tree: enough to append and to know the root, O(log size) hashes."""

    size: int = 0
    hashes: list[bytes] = field(default_factory=list)

    def append(self, leaf: bytes) -> list[tuple[Node, bytes]]:
        """Add a leaf hash; return every complete subtree of height ≥ 1 that it finished, lowest first."""
        finished: list[tuple[Node, bytes]] = []
        carry, height = leaf, 0
        while self.size >> height & 1:
            carry = node_hash(self.hashes.pop(), carry)
            height += 1
            finished.append(((height, self.size >> height), carry))
        self.hashes.append(carry)
        self.size += 1
        return finished

    @property
    def root(self) -> bytes:
        """MTH of all leaves; the hash of nothing when there are none."""
        return fold(self.hashes)

    def to_bytes(self) -> bytes:
        """The hashes, concatenated; the size says how many there are."""
        return b"".join(self.hashes)

    @classmethod
    def from_bytes(cls, size: int, data: bytes) -> Frontier:
        """Raise Corrupt when the number of hashes does not fit the size."""
        if size < 0 or len(data) != HASH_BYTES * size.bit_count():
            raise Corrupt("The log's frontier does not fit its size.", mend="Run `accord log verify`.")
        return cls(size, split_hashes(data))


def split_hashes(data: bytes) -> list[bytes]:
    """Cut concatenated hashes apart."""
    return [data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES)]


def fold(hashes: Sequence[bytes]) -> bytes:
    """MTH of neighbouring complete subtrees of falling height: joined from the right."""
    if not hashes:
        return EMPTY_ROOT
    total = hashes[-1]
    for left in reversed(hashes[:-1]):
        total = node_hash(left, total)
    return total


def root_of(leaves: Iterable[bytes]) -> bytes:
    """MTH of leaf hashes."""
    frontier = Frontier()
    for leaf in leaves:
        frontier.append(leaf)
    return frontier.root


def nodes_of(span: Range) -> list[Node]:
    """The complete subtrees, left to right, whose fold is MTH(span); `span` starts at a subtree's start."""
    start, end = span
    nodes: list[Node] = []
    while start < end:
        height = (end - start).bit_length() - 1
        nodes.append((height, start >> height))
        start += 1 << height
    return nodes


def inclusion_ranges(index: int, size: int) -> list[Range]:
    """PATH(index, D[size]) (RFC 6962 §2.1.1): the ranges hashed into the proof, leaf's sibling first."""
    if not 0 <= index < size:
        raise Invalid(f"There is no entry {index} in a log of {size}.", code="no-such-entry")
    ranges: list[Range] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((start, middle))
            start = middle
    return ranges[::-1]


def consistency_ranges(old: int, new: int) -> list[Range]:
    """PROOF(old, D[new]) (RFC 6962 §2.1.2): the ranges hashed into the proof; none for old = 0 or old = new."""
    if not 0 <= old <= new:
        raise Invalid(f"A log of {new} has no earlier size {old}.", code="no-such-size")
    if old in (0, new):
        return []
    ranges: list[Range] = []
    start, end, whole = 0, new, True
    while old != end:
        middle = start + _split(end - start)
        if old <= middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((start, middle))
            start, whole = middle, False
    if not whole:
        ranges.append((start, end))
    return ranges[::-1]


def check_inclusion(index: int, size: int, leaf: bytes, proof: Sequence[bytes], root: bytes) -> None:
    """Raise Corrupt unless `proof` shows `leaf` at `index` of the tree `(size, root)` (RFC 9162 §2.1.3.2)."""
    _check_hashes(proof, leaf, root)
    if not 0 <= index < size:
        raise _bad_proof("the index is not inside the tree")
    first, last, total = index, size - 1, leaf
    for step in proof:
        if last == 0:
            raise _bad_proof("it is too long")
        if first & 1 or first == last:
            total = node_hash(step, total)
            while not first & 1 and first:
                first, last = first >> 1, last >> 1
        else:
            total = node_hash(total, step)
        first, last = first >> 1, last >> 1
    if last != 0:
        raise _bad_proof("it is too short")
    if total != root:
        raise _bad_proof("the root comes out different")


def check_consistency(old: int, new: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes) -> None:
    """Raise Corrupt unless the tree `(new, new_root)` extends `(old, old_root)` (RFC 9162 §2.1.4.2).

    The empty tree is consistent with any tree and needs an empty proof.
    """
    _check_hashes(proof, old_root, new_root)
    if not 0 <= old <= new:
        raise _bad_proof("the sizes are the wrong way round")
    if old in (0, new):
        _check_trivial(old, new, proof, old_root, new_root)
        return
    steps = list(proof)
    if old & (old - 1) == 0:
        steps.insert(0, old_root)
    if not steps:
        raise _bad_proof("it is empty")
    first, last = old - 1, new - 1
    while first & 1:
        first, last = first >> 1, last >> 1
    old_total = new_total = steps[0]
    for step in steps[1:]:
        if last == 0:
            raise _bad_proof("it is too long")
        if first & 1 or first == last:
            old_total, new_total = node_hash(step, old_total), node_hash(step, new_total)
            while not first & 1 and first:
                first, last = first >> 1, last >> 1
        else:
            new_total = node_hash(new_total, step)
        first, last = first >> 1, last >> 1
    if last != 0:
        raise _bad_proof("it is too short")
    if old_total != old_root or new_total != new_root:
        raise _bad_proof("the roots come out different: history was rewritten")


def _check_trivial(old: int, new: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes) -> None:
    if proof:
        raise _bad_proof("it must be empty")
    if old == 0 and old_root != EMPTY_ROOT:
        raise _bad_proof("the root of the empty tree is wrong")
    if old == new and old_root != new_root:
        raise _bad_proof("one size has two roots: history was rewritten")


def _check_hashes(proof: Sequence[bytes], *roots: bytes) -> None:
    if len(proof) > MAX_PROOF_HASHES:
        raise _bad_proof(f"it has more than {MAX_PROOF_HASHES} hashes")
    if any(len(value) != HASH_BYTES for value in (*proof, *roots)):
        raise _bad_proof(f"a hash is not {HASH_BYTES} bytes long")


def _split(count: int) -> int:
    """The largest power of two below `count` (count ≥ 2)."""
    return 1 << ((count - 1).bit_length() - 1)


def _bad_proof(why: str) -> Corrupt:
    return Corrupt(f"The Merkle proof does not hold: {why}.", code="bad-proof")

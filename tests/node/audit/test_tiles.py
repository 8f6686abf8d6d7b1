"""Tiles: names, widths, and proofs out of them at sizes past a full level."""

from __future__ import annotations

import pytest

from consent.errors import Corrupt, Invalid
from node.audit.merkle import (
    HASH_BYTES,
    Frontier,
    check_consistency,
    check_inclusion,
    consistency_ranges,
    inclusion_ranges,
    leaf_hash,
    root_of,
)
from node.audit.tiles import Tile, range_hashes, root_hash, tile_of, tiles_of


@pytest.mark.parametrize(
    ("tile", "path"),
    [
        (Tile(0, 0), "tile/0/000"),
        (Tile(0, 0, 1), "tile/0/000.p/1"),
        (Tile(3, 999, 255), "tile/3/999.p/255"),
        (Tile(1, 1000), "tile/1/x001/000"),
        (Tile(0, 1234067), "tile/0/x001/x234/067"),
    ],
)
def test_a_tile_has_one_path(tile: Tile, path: str) -> None:
    """Three-digit groups, all but the last with an x; the width only when partial."""
    assert tile.path == path
    assert Tile.parse(path) == tile


@pytest.mark.parametrize(
    "path",
    [
        "",
        "tile/0/0",
        "tile/00/000",
        "tile/7/000",
        "tile/0/1000",
        "tile/0/x000/000",
        "tile/0/001/000",
        "tile/0/000.p/0",
        "tile/0/000.p/256",
        "tile/0/000.p/01",
        "tile/0/../../etc",
        "tile/entries/000",
        "tile/0/" + "x001/" * 30 + "000",
    ],
)
def test_any_other_spelling_is_refused(path: str) -> None:
    """A path from outside names a tile in its one spelling, or nothing."""
    with pytest.raises(Invalid, match="path of a tile"):
        Tile.parse(path)


def test_a_tree_of_70000_has_the_tiles_that_the_format_says() -> None:
    """273 full level 0 tiles and one of 112, one full level 1 tile and one of 17, one level 2 tile of 1."""
    tiles = tiles_of(70_000)
    widths = {level: [tile.width for tile in tiles if tile.level == level] for level in range(4)}
    assert widths == {0: [256] * 273 + [112], 1: [256, 17], 2: [1], 3: []}
    assert [(t.level, t.width) for t in tiles_of(256)] == [(0, 256), (1, 1)]
    assert tiles_of(0) == []
    with pytest.raises(Invalid, match="no tile"):
        tile_of(0, 1, 256)


@pytest.mark.requirement("A1")
async def test_proofs_from_tiles_hold_past_the_second_level() -> None:
    """At 66,000 entries, proofs across all tile boundaries come from a handful of tiles and check out."""
    size = 66_000
    leaves = [leaf_hash(n.to_bytes(4, "big")) for n in range(size)]
    levels: dict[int, list[bytes]] = {0: leaves, 1: [], 2: []}
    frontier = Frontier()
    roots = {}
    for leaf in leaves:
        for (height, _), value in frontier.append(leaf):
            if height % 8 == 0:
                levels[height // 8].append(value)
        if frontier.size in (1, 255, 256, 257, 65_536, 65_793):
            roots[frontier.size] = frontier.root
    asked: list[Tile] = []

    async def load(tile: Tile) -> bytes:
        asked.append(tile)
        return b"".join(levels[tile.level][tile.start : tile.start + tile.width])

    assert await root_hash(size, load) == frontier.root
    for index in (0, 255, 256, 65_535, 65_536, 65_999):
        asked.clear()
        proof = await range_hashes(inclusion_ranges(index, size), size, load)
        check_inclusion(index, size, leaves[index], proof, frontier.root)
        assert len(asked) <= 6
    for old, root in roots.items():
        proof = await range_hashes(consistency_ranges(old, size), size, load)
        check_consistency(old, size, proof, root, frontier.root)


async def test_a_tile_of_the_wrong_length_is_refused() -> None:
    """A peer that serves half a tile proves nothing."""

    async def load(tile: Tile) -> bytes:
        return bytes(HASH_BYTES * tile.width - 1)

    with pytest.raises(Corrupt, match="tile/0/000"):
        await root_hash(5, load)


async def test_the_empty_tree_needs_no_tile() -> None:
    """Its root is the hash of nothing."""

    async def load(tile: Tile) -> bytes:
        raise AssertionError(tile)

    assert await root_hash(0, load) == root_of([])

"""Tiles (C2SP tlog-tiles): the Merkle tree cut into runs of 256 hashes, and proofs put together from them.

Pure but for the loading function that comes in, so the same code proves from our own database and checks
a peer's log over HTTP. A tile at level l, index n holds the hashes of the complete subtrees of height 8·l
from 256·n on; entry bundles are not published, for the hub and peers see hashes only.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from consent.errors import Corrupt, Invalid
from node.audit.merkle import HASH_BYTES, Node, Range, fold, nodes_of, root_of, split_hashes

TILE_WIDTH = 256
TILE_HEIGHT = 8
MAX_LEVEL = 6
MAX_PATH_CHARACTERS = 64

Load = Callable[["Tile"], Awaitable[bytes]]
"""Gives the bytes of a tile: `width` hashes, concatenated. Raises NotFound when there are not as many."""

_PATH = re.compile(r"tile/(0|[1-9][0-9]?)/((?:x[0-9]{3}/){0,5}[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?")


@dataclass(frozen=True)
class Tile:
    """The name of a tile. A partial one (`width` < 256) exists at the right edge only."""

    level: int
    index: int
    width: int = TILE_WIDTH

    @property
    def start(self) -> int:
        """The position of its first hash among the hashes of its level."""
        return self.index * TILE_WIDTH

    @property
    def path(self) -> str:
        """`tile/<L>/<N>[.p/<W>]`, the index in groups of three digits."""
        digits = str(self.index)
        digits = digits.zfill(-(-len(digits) // 3) * 3)
        groups = [digits[at : at + 3] for at in range(0, len(digits), 3)]
        name = "/".join([f"x{group}" for group in groups[:-1]] + groups[-1:])
        return f"tile/{self.level}/{name}" + (f".p/{self.width}" if self.width < TILE_WIDTH else "")

    @classmethod
    def parse(cls, path: str) -> Tile:
        """Read a tile's path. Raises Invalid when it is not one, or not its only spelling."""
        found = _PATH.fullmatch(path) if len(path) <= MAX_PATH_CHARACTERS else None
        if found is None:
            raise Invalid("Not the path of a tile.", mend="Ask for tile/<level>/<index>[.p/<width>].")
        level, digits, width = found.groups()
        tile = cls(
            int(level), int(digits.replace("x", "").replace("/", "")), int(width) if width else TILE_WIDTH
        )
        if tile.level > MAX_LEVEL or tile.path != path:
            raise Invalid("Not the path of a tile.", mend="Ask for tile/<level>/<index>[.p/<width>].")
        return tile


def tile_of(level: int, index: int, size: int) -> Tile:
    """The tile as a tree of `size` entries has it. Raises Invalid when that tree has none there."""
    width = min(TILE_WIDTH, (size >> (TILE_HEIGHT * level)) - index * TILE_WIDTH)
    if width < 1:
        raise Invalid(f"A log of {size} has no tile {index} at level {level}.")
    return Tile(level, index, width)


def tiles_of(size: int) -> list[Tile]:
    """Every tile of a tree of `size` entries, level by level."""
    tiles: list[Tile] = []
    level = 0
    while (hashes := size >> (TILE_HEIGHT * level)) > 0:
        tiles.extend(tile_of(level, index, size) for index in range(-(-hashes // TILE_WIDTH)))
        level += 1
    return tiles


async def range_hashes(ranges: Sequence[Range], size: int, load: Load) -> list[bytes]:
    """MTH of each range of a tree of `size` entries, from as few tiles as hold them."""
    loaded: dict[Tile, list[bytes]] = {}

    async def subtree(node: Node) -> bytes:
        height, index = node
        level, rest = divmod(height, TILE_HEIGHT)
        first = index << rest
        tile = tile_of(level, first // TILE_WIDTH, size)
        if tile not in loaded:
            loaded[tile] = _cut(await load(tile), tile)
        at = first - tile.start
        return root_of(loaded[tile][at : at + (1 << rest)])

    return [fold([await subtree(node) for node in nodes_of(span)]) for span in ranges]


async def root_hash(size: int, load: Load) -> bytes:
    """The root of the tree at `size`."""
    return (await range_hashes([(0, size)], size, load))[0]


def _cut(data: bytes, tile: Tile) -> list[bytes]:
    if len(data) != tile.width * HASH_BYTES:
        raise Corrupt(f"Tile {tile.path} does not hold {tile.width} hashes.", code="bad-tile")
    return split_hashes(data)

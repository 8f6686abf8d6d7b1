"""Reading one blob from whichever copy gives it, so that who reads does not notice a lost root."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from consent.errors import AccordError, NotFound, Unavailable
from node.vault.blobs import Read, check_name
from node.vault.lanes import Root
from node.vault.quorum import nothing_to_read

if TYPE_CHECKING:
    from node.vault.replicas import Replicas


class Failover:
    """Reads one blob from the first copy that gives what is asked for."""

    def __init__(self, replicas: Replicas, name: str, stack: ExitStack) -> None:
        check_name(name)
        self._name = name
        self._stack = stack
        self._replicas = replicas
        self._left = replicas.reading_order(name)
        self._open: list[tuple[Root, Read]] = []
        self._missing: AccordError | None = None

    def open(self) -> None:
        """Open the first copy that there is. Raises NotFound, Unavailable."""
        if not self._open and not self._open_next():
            raise self._missing or nothing_to_read()

    def read(self, offset: int, length: int) -> bytes:
        """Bytes from `offset`; fewer at the end of the longest copy."""
        best: bytes | None = None
        refusal: AccordError | None = None
        number = 0
        while number < len(self._open) or self._open_next():
            root, read = self._open[number]
            number += 1
            try:
                data = read(offset, length)
            except Unavailable as error:
                root.trouble = error.message
                refusal = error
                continue
            if best is None or len(data) > len(best):
                best = data
            if len(data) == length or self._longest() <= offset + len(data):
                break
        if best is None:
            raise refusal or nothing_to_read()
        return best

    def _longest(self) -> int:
        try:
            return self._replicas.size(self._name)
        except (NotFound, Unavailable):
            return 0

    def _open_next(self) -> bool:
        while self._left:
            root = self._left.pop(0)
            try:
                self._open.append((root, self._stack.enter_context(root.blobs.opened(self._name))))
                return True
            except (NotFound, Unavailable) as error:
                if self._missing is None or isinstance(error, NotFound):
                    self._missing = error
        return False

"""Alembic's entry point: runs on the connection that `ops.migrate` hands over."""

from __future__ import annotations

from typing import Any, Literal

from alembic import context

from node.database import UtcDateTime
from ops.schema import metadata


def _render(kind: str, item: Any, _context: Any) -> str | Literal[False]:
    """A revision is frozen and names no code of ours: a moment is written as the integer it is stored as."""
    return "sa.BigInteger()" if kind == "type" and isinstance(item, UtcDateTime) else False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    transaction_per_migration=False,
    render_item=_render,
)
context.run_migrations()

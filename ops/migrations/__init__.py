"""The database's schema over time (Alembic). `ops.migrate` runs it; nobody calls Alembic by hand."""

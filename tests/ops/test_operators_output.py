"""What a node writes for its operators names no patient, also when something goes wrong that nobody foresaw."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from node.database import Database
from ops.service import without_values

NAME = "ZQX^PATIENT"


@pytest.mark.requirement("F6")
def test_an_errors_words_stay_out_of_the_output() -> None:
    """Kind and place are enough to find it; what the error said may be a value from a data set."""
    try:
        raise ValueError(f"cannot read {NAME}")
    except ValueError as error:
        said = without_values(None, "error", {"event": "failed", "exc_info": True})
        again = without_values(None, "error", {"event": "failed", "exc_info": error})

    assert said == again
    assert said["kind"] == "ValueError"
    assert "test_operators_output.py" in said["at"]
    assert NAME not in str(said)


def test_a_line_without_an_error_is_left_as_it_is() -> None:
    """Ordinary lines pass."""
    assert without_values(None, "info", {"event": "ready", "exc_info": False}) == {"event": "ready"}


@pytest.mark.requirement("F6")
async def test_a_databases_errors_do_not_repeat_the_values(tmp_path: Path) -> None:
    """The text of a refused statement names the table, not what was to be written."""
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/node.db")
    with pytest.raises(IntegrityError) as refused:
        async with database.write() as tx:
            await tx.execute(text("CREATE TABLE kept (name TEXT PRIMARY KEY)"))
            for _ in range(2):
                await tx.execute(text("INSERT INTO kept VALUES (:name)"), {"name": NAME})
    await database.close()

    assert "kept" in str(refused.value)
    assert NAME not in str(refused.value)

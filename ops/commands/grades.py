"""`accord grade`: how sensitive a study is, when the rules are to be overruled."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from consent.errors import Conflict, Invalid
from ops.commands.arguments import Folder, Json, operator
from ops.commands.keys import GRADES
from ops.console import speaks, tell
from ops.foundation import opened
from ops.lock import sole_user
from ops.remote import ask_running

grades = typer.Typer(help="How sensitive a study is.", no_args_is_help=True)


@grades.callback()
def grade() -> None:
    """How sensitive a study is, when the rules are to be overruled."""


@grades.command("set")
@speaks
def set_grade(
    folder: Folder,
    study: Annotated[str, typer.Argument(metavar="STUDY", help="Study id (st_…) or Study Instance UID.")],
    grade: Annotated[str, typer.Argument(metavar="GRADE", help="ordinary, sensitive or restricted.")],
    reason: Annotated[str, typer.Option(help="Why; on record.")] = "",
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="API token of an officer: for a node that runs."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Seal a study anew under another grade and destroy its old key. Copies at other hospitals end with it.

    Example: accord grade set /srv/accord st_abcd restricted --reason "A member of staff"
    """
    if grade not in GRADES:
        raise Invalid("This is not a grade.", mend=f"Use one of: {', '.join(GRADES)}.")
    done = asyncio.run(_set(folder, study, grade, reason, token_file))
    words = f"{done['study']} was {done['before']} and is {done['grade']}: {done['objects']} objects were sealed anew."
    tell(words, done, as_json=as_json)


async def _set(folder: Path, study: str, grade: str, reason: str, token_file: Path | None) -> dict[str, Any]:
    if token_file is not None:
        if not study.startswith("st_"):
            async with opened(folder, upgrade=False) as node:
                study = node.pseudonyms.study(study)
        body = {"grade": grade, "reason": reason}
        answer: dict[str, Any] = await ask_running(
            folder, token_file, "POST", f"/api/v1/studies/{study}/grade", body
        )
        return answer
    try:
        with sole_user(folder):
            return await _set_here(folder, study, grade, reason)
    except Conflict as error:
        if error.code != "already-running":
            raise
        raise Conflict(
            "The node runs: a security officer or chief physician sets grades there.",
            mend="Give --token-file with an API token of one of them.",
            code="already-running",
        ) from error


async def _set_here(folder: Path, study: str, grade: str, reason: str) -> dict[str, Any]:
    from ops.storage import build_archive

    async with opened(folder) as node:
        archive = await build_archive(node)
        async with archive.running():
            name = study if study.startswith("st_") else node.pseudonyms.study(study)
            done = await archive.regrading.regrade(name, GRADES[grade], operator(), reason=reason)
    return {
        "study": done.study,
        "before": done.before.name.lower(),
        "grade": done.after.name.lower(),
        "objects": done.objects,
    }

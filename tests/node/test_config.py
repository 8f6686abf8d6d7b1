"""node.toml: every key explained, read back as written, and refused with the key's name when it is wrong."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consent.errors import Conflict, Invalid, NotFound
from node.config import (
    FILE_NAME,
    KEY_WORDS,
    SECTION_WORDS,
    Settings,
    load_settings,
    new_settings,
    write_settings,
)
from node.settings_file import MAX_FILE_BYTES, Section

NAME = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=60)


def settings(folder: Path, **sections: dict[str, object]) -> Settings:
    return new_settings(folder, **{"node": {"id": "a-general", "name": "General Hospital"}, **sections})


def keys() -> set[str]:
    """Every key of every section of the model."""
    found = set()
    for section, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found |= {f"{section}.{key}" for key in field.annotation.model_fields}
    return found


def test_every_key_and_section_is_explained() -> None:
    """The file that `accord init` writes says what each key is for, and explains no key that is gone."""
    assert set(KEY_WORDS) == keys()
    assert set(SECTION_WORDS) == {key.partition(".")[0] for key in keys()}


@pytest.mark.requirement("F3")
def test_the_written_file_holds_every_key_and_reads_back_the_same(tmp_path: Path) -> None:
    """With each key's explanation on the line above it."""
    wanted = settings(
        tmp_path, http={"port": 1}, intervals={"sweep_seconds": 0.5}, discovery={"enabled": True}
    )
    text = write_settings(wanted).read_text("utf-8")
    assert load_settings(tmp_path) == wanted
    data = tomllib.loads(text)
    assert {f"{section}.{key}" for section, values in data.items() for key in values} == keys()
    for words in KEY_WORDS.values():
        assert f"# {words}" in text


@given(name=NAME, url=st.text(st.characters(codec="utf-8", exclude_categories=("C",)), max_size=40))
def test_any_text_survives_the_file(tmp_path_factory: pytest.TempPathFactory, name: str, url: str) -> None:
    """Quotes, backslashes and every script come back as they were."""
    folder = tmp_path_factory.mktemp("any")
    wanted = settings(folder, node={"id": "a1", "name": name}, peer={"url": url})
    write_settings(wanted)
    assert load_settings(folder) == wanted


def test_a_line_left_out_keeps_its_default(tmp_path: Path) -> None:
    """Only id and name are needed."""
    (tmp_path / FILE_NAME).write_text('[node]\nid = "a1"\nname = "A"\n', "utf-8")
    assert load_settings(tmp_path) == settings(tmp_path, node={"id": "a1", "name": "A"})


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    """Writing again is a conflict."""
    write_settings(settings(tmp_path))
    with pytest.raises(Conflict, match="is there already"):
        write_settings(settings(tmp_path))


@pytest.mark.requirement("F3")
@pytest.mark.parametrize(
    ("database", "url"),
    [
        ("sqlite+aiosqlite:///accord.db", "sqlite+aiosqlite:///{folder}/accord.db"),
        ("sqlite+aiosqlite:////var/accord.db", "sqlite+aiosqlite:////var/accord.db"),
        ("postgresql+asyncpg://u@db/accord", "postgresql+asyncpg://u@db/accord"),
    ],
    ids=["relative file", "absolute file", "server"],
)
def test_a_relative_database_lies_in_the_folder(tmp_path: Path, database: str, url: str) -> None:
    """Other URLs are taken as they stand."""
    made = settings(tmp_path, storage={"database": database})
    assert made.database_url == url.format(folder=tmp_path)


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    """So a folder can be moved; an absolute path stays (another medium)."""
    made = settings(tmp_path, keys={"credential_file": "/media/key/root"})
    assert made.path(made.storage.packs) == tmp_path / "packs"
    assert made.path(made.keys.credential_file) == Path("/media/key/root")


WRONG = {
    "not TOML": ("[node", "is not valid TOML"),
    "not UTF-8": (b"\xff\xfe", "is not valid TOML"),
    "no name": ('[node]\nid = "a1"', "node.name"),
    "id with capitals": ('[node]\nid = "A1"\nname = "A"', "node.id: use 2 to 32"),
    "id too long": (f'[node]\nid = "{"a" * 33}"\nname = "A"', "node.id"),
    "AE title too long": ('[node]\nid = "a1"\nname = "A"\nae_title = "ABCDEFGHIJKLMNOPQ"', "node.ae_title"),
    "AE title with backslash": ("[node]\nid = 'a1'\nname = 'A'\nae_title = 'A\\B'", "node.ae_title"),
    "unknown section": ('[node]\nid = "a1"\nname = "A"\n[htpp]\nport = 1', "htpp"),
    "unknown key": ('[node]\nid = "a1"\nname = "A"\n[http]\nprot = 1', "http.prot"),
    "port as text": ('[node]\nid = "a1"\nname = "A"\n[http]\nport = "x"', "http.port"),
    "port too high": ('[node]\nid = "a1"\nname = "A"\n[peer]\nport = 65536', "peer.port"),
    "interval of zero": ('[node]\nid = "a1"\nname = "A"\n[intervals]\nsweep_seconds = 0', "sweep_seconds"),
    "lease longer than fifteen minutes": (
        '[node]\nid = "a1"\nname = "A"\n[policy]\nlease_seconds = 901',
        "policy.lease_seconds",
    ),
    "folder": ('folder = "/etc"\n[node]\nid = "a1"\nname = "A"', "folder: unknown key"),
    "too large": ("#" * (MAX_FILE_BYTES + 1), "larger than"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_broken_file_is_refused_with_the_key_and_what_is_allowed(tmp_path: Path, case: str) -> None:
    """The message names the file and the key."""
    content, words = WRONG[case]
    file = tmp_path / FILE_NAME
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(Invalid) as refused:
        load_settings(tmp_path)
    assert words in refused.value.message and str(file) in refused.value.message


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    """The remedy is the command."""
    with pytest.raises(NotFound) as missing:
        load_settings(tmp_path / "none")
    assert "accord init" in missing.value.mend


def test_a_bad_value_on_the_command_line_makes_no_folder(tmp_path: Path) -> None:
    """It is refused before anything is written."""
    with pytest.raises(Invalid, match=r"node\.id"):
        settings(tmp_path / "new", node={"id": "-", "name": "A"})
    assert not (tmp_path / "new").exists()

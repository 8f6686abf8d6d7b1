"""Synthetic studies for the benchmarks: CT of 512×512 16-bit slices, about 525 kB each, and thousands of tiny ones.

Every study has UIDs and a patient of its own, so that no server meets an instance twice.
`python -m tests.bench.workload FOLDER` writes CT studies as folders of DICOM files.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np

from tests.support.dicom import Instance, ct_slice, phantom, uid

SLICES = 200
SIZE = 512
TINY_SIZE = 16
NAMES = ("Dupont^Marie", "Nguyen^Van An", "Muller^Jorg", "Garcia^Lucia", "Smith^Alex", "Okafor^Ada")


@cache
def volume(slices: int = SLICES, size: int = SIZE) -> tuple[np.ndarray, ...]:
    """The pixels of one study, slice by slice."""
    return tuple(phantom(size, z) for z in range(slices))


def ct_study(number: int, *, slices: int = SLICES, size: int = SIZE) -> Iterator[Instance]:
    """The instances of study `number`; the same number always gives the same bytes."""
    for z, pixels in enumerate(volume(slices, size), start=1):
        yield ct_slice(
            patient_id=f"BENCH-{number:06d}",
            patient_name=f"Bench^Patient {number}",
            accession_number=f"B{number:08d}",
            study=ct_name(number),
            number=z,
            pixels=pixels,
        )


def ct_name(number: int) -> str:
    """What the UIDs of CT study `number` are made from."""
    return f"bench/{number}"


def tiny_study(number: int) -> Instance:
    """A study of one small instance: for searches among many."""
    return ct_slice(
        patient_id=tiny_patient(number),
        patient_name=NAMES[number % len(NAMES)],
        accession_number=tiny_accession(number),
        study=f"bench/tiny/{number}",
        study_date=f"202{number % 6}{number % 12 + 1:02d}{number % 28 + 1:02d}",
        pixels=_tiny_pixels(),
    )


@cache
def _tiny_pixels() -> np.ndarray:
    return phantom(TINY_SIZE, 1)


def tiny_accession(number: int) -> str:
    """The Accession Number of a tiny study."""
    return f"T{number:08d}"


def tiny_patient(number: int) -> str:
    """The Patient ID of a tiny study."""
    return f"TINY-{number:06d}"


def tiny_uid(number: int) -> str:
    """The Study Instance UID of a tiny study."""
    return uid(f"bench/tiny/{number}")


def write_study(folder: Path, number: int, *, slices: int = SLICES, size: int = SIZE) -> list[Path]:
    """Write CT study `number` as files into `folder`; return them in order."""
    return _written(folder / f"study{number:04d}", ct_study(number, slices=slices, size=size))


def write_tiny(folder: Path, count: int) -> list[Path]:
    """Write the first `count` tiny studies as files."""
    return _written(folder / "tiny", (tiny_study(number) for number in range(count)))


def _written(folder: Path, instances: Iterator[Instance]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, instance in enumerate(instances):
        path = folder / f"{number:05d}.dcm"
        path.write_bytes(instance.file())
        paths.append(path)
    return paths


def main() -> None:
    """Write studies into a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--studies", type=int, default=3)
    parser.add_argument("--slices", type=int, default=SLICES)
    given = parser.parse_args()
    for number in range(given.studies):
        write_study(given.folder, number, slices=given.slices)


if __name__ == "__main__":
    main()

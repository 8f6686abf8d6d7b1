"""Synthetic CT studies for the benchmarks: 512×512 16-bit slices of a phantom, about 525 kB each.

Every study has UIDs and a patient of its own over the same pixels, so that no server meets an instance twice.
`python -m tests.bench.workload FOLDER` writes studies as folders of DICOM files.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np

from tests.support.dicom import Instance, ct_slice, phantom

SLICES = 200
SIZE = 512


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
            study=f"bench/{number}",
            number=z,
            pixels=pixels,
        )


def write_study(folder: Path, number: int, *, slices: int = SLICES, size: int = SIZE) -> list[Path]:
    """Write study `number` as files into `folder`; return them in order."""
    target = folder / f"study{number:04d}"
    target.mkdir(parents=True, exist_ok=True)
    paths = []
    for z, instance in enumerate(ct_study(number, slices=slices, size=size)):
        path = target / f"{z:05d}.dcm"
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

"""A case and a data set: what is where, before any pixel is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """One image with its label.

    Attributes:
        case_id: unique within the data set, safe as a file name.
        patient_id: who; splits never part a patient.
        images: one file per channel, or a single file that holds all channels.
        label: the label map, or None where there is none.
        group: a stratum for splitting (diagnosis, vendor), "" where unknown.
    """

    case_id: str
    patient_id: str
    images: tuple[Path, ...]
    label: Path | None = None
    group: str = ""


@dataclass(frozen=True)
class Dataset:
    """A folder of cases that a layout understood.

    Attributes:
        name: the data set's own name.
        root: the folder.
        layout: the layout's name in `LAYOUTS`.
        channel_names: one name per input channel.
        labels: value → name, background (0) included, values ascending.
        cases: ordered by case_id.
        licence: as the data set declares it, "" where it does not.
        ignored: value of voxels that nobody labelled (nnU-Net's "ignore"), None where all are.
    """

    name: str
    root: Path
    layout: str
    channel_names: tuple[str, ...]
    labels: Mapping[int, str]
    cases: tuple[Case, ...]
    licence: str = ""
    ignored: int | None = None

"""An image, and a segmentation that somebody or a model drew on it, as rows and as objects."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Kind = Literal["model", "reader", "consensus", "final"]
State = Literal["draft", "submitted", "final"]
KINDS: tuple[Kind, ...] = ("model", "reader", "consensus", "final")


class StaleError(Exception):
    """A segmentation was changed by another since it was read."""


@dataclass(frozen=True)
class Image:
    """One volume that can be shown.

    Attributes:
        image_id: 32 hexadecimal digits.
        study: StudyInstanceUID, "" for an image of a data set.
        series: SeriesInstanceUID, likewise.
        what: which of the series' volumes it is, "" where there is one.
        name: what it is called, which names no patient.
        modality: as DICOM has it, "" where nobody knows.
        description: of the series.
        shape: voxels along (i, j, k) of the NIfTI file.
        spacing_mm: between them.
        units: of its grey values, "" where nobody knows.
        instances: digest of the instances, or of the file, that it was made from.
        window: (name, low, high), the one to begin with first.
    """

    image_id: str
    study: str
    series: str
    what: str
    name: str
    modality: str
    description: str
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    units: str
    instances: str
    window: tuple[tuple[str, float, float], ...]


@dataclass(frozen=True)
class Segmentation:
    """What somebody or a model drew on an image.

    Attributes:
        segmentation_id: 32 hexadecimal digits.
        image_id: on which.
        kind: one of `KINDS`.
        author: the model's name, or the person's.
        state: a draft, submitted, or final.
        labels: value → name.
        product_class: of the model that made it; of the service's deployment for a person's.
        made: seconds since 1970.
        confirmed_by: the reader who confirmed what the model says, "" where nobody did.
        confirmed: when, seconds since 1970; 0 where nobody did.
        version: 1 and one more with each change.
        confidence: value → how sure a model of class `diagnosis` is of it, 0 to 1.
        project: in which it was drawn, "" where in none.
        maker: digest of the weights of the model that made it, "" where a person did.
    """

    segmentation_id: str
    image_id: str
    kind: Kind
    author: str
    state: State
    labels: Mapping[int, str]
    product_class: str
    made: float
    confirmed_by: str = ""
    confirmed: float = 0.0
    version: int = 1
    confidence: Mapping[int, float] = field(default_factory=dict)
    project: str = ""
    maker: str = ""


@dataclass(frozen=True)
class About:
    """What is known of an image that is taken in; see `Image`."""

    study: str = ""
    series: str = ""
    what: str = ""
    name: str = ""
    modality: str = ""
    description: str = ""
    units: str = ""
    instances: str = ""
    window: tuple[tuple[str, float, float], ...] = field(default=())


def image_id_of(about: About | Image) -> str:
    """Return the id of an image by what it is, so that a second attempt gives the same."""
    what = about.what if about.series else about.name
    parts = (about.study, about.series, what, about.instances)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def image_of(row: Any) -> Image:
    """Return the image of a row."""
    values = dict(row._mapping)
    del values["made"], values["former"]
    for name in ("shape", "spacing_mm"):
        values[name] = tuple(json.loads(values[name]))
    values["window"] = tuple(tuple(one) for one in json.loads(values["window"]))
    return Image(**values)


def row_of(one: Segmentation) -> dict[str, Any]:
    """Return the row of a segmentation."""
    row = asdict(one)
    for name in ("labels", "confidence"):
        row[name] = json.dumps({str(value): said for value, said in row[name].items()})
    return row


def segmentation_of(row: Any) -> Segmentation:
    """Return the segmentation of a row."""
    values = dict(row._mapping)
    for name in ("labels", "confidence"):
        values[name] = {int(value): said for value, said in json.loads(values[name]).items()}
    return Segmentation(**values)

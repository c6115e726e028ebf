"""Clicks into a structure over HTTP: a mask to begin from, without a model."""

from __future__ import annotations

import tempfile
import threading
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from qinjing.data.nifti import read_nifti
from qinjing.errors import InputError
from qinjing.serve.clinic import GZIP, Id, needs, seen_image, sends
from qinjing.serve.guard import Refusal
from qinjing.serve.images import Images
from qinjing.serve.labelling.files import packed
from qinjing.serve.session import Who
from qinjing.tasks.click import RADIUS_MM, Click, segment_click
from qinjing.volume import Volume

router = APIRouter(prefix="/api", tags=["annotation"])
_TURNS = threading.BoundedSemaphore(2)  # at once, which bounds memory
Index = Annotated[int, Field(ge=0, le=100_000)]


class Point(BaseModel):
    """A voxel (i, j, k) that belongs to the structure, or does not."""

    model_config = ConfigDict(extra="forbid")
    voxel: tuple[Index, Index, Index]
    inside: bool = True


class Clicked(BaseModel):
    """All clicks about one structure, which lies within a radius of those inside."""

    model_config = ConfigDict(extra="forbid")
    points: list[Point] = Field(min_length=1, max_length=64)
    radius_mm: float = Field(default=RADIUS_MM, ge=1, le=200)


@router.post("/images/{image}/click", response_class=Response, responses=sends(GZIP))
def click(image: Id, asked: Clicked, who: Who, request: Request) -> Response:
    """Send a mask of the structure that was clicked at: 1 inside, on the image's grid."""
    needs(who, "annotate")
    seen_image(request, who, image)
    images: Images = request.app.state.images
    with _TURNS:
        volume = _volume(images.volume(image))
        points = [Click(_turned(point.voxel), point.inside) for point in asked.points]
        try:
            mask = segment_click(volume, points, asked.radius_mm)
        except InputError as error:
            raise Refusal(400, "click", str(error)) from None
        with tempfile.TemporaryDirectory(prefix="qinjing-") as folder:
            content = packed(volume.with_voxels(mask.astype(np.uint8)), Path(folder))
    return Response(content, media_type=GZIP)


def _turned(voxel: tuple[int, int, int]) -> tuple[int, int, int]:
    """From (i, j, k) to (d, h, w)."""
    i, j, k = voxel
    return k, j, i


@lru_cache(maxsize=2)
def _volume(file: Path) -> Volume:
    """An image, which never changes; clicks come in rows."""
    return read_nifti(file)

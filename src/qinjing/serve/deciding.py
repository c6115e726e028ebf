"""What an admin does with several readers' labels: compare, join, decide, open again."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict

from qinjing.data.nifti import read_nifti
from qinjing.serve import agreeing
from qinjing.serve.annotation import (
    ImageId,
    Person,
    ProjectId,
    Sent,
    checked,
    drawn,
    image_here,
    keep,
    packed,
)
from qinjing.serve.clinic import Nothing, audit_of, images_of, needs
from qinjing.serve.guard import Refusal
from qinjing.serve.session import Who
from qinjing.serve.telling import told
from qinjing.volume import Volume

router = APIRouter(prefix="/api/projects/{project}/images/{image}", tags=["annotation"])


class Reopened(BaseModel):
    """Whose labels are opened again."""

    model_config = ConfigDict(extra="forbid")
    reader: Person


@router.post("/reopen")
def reopen(
    project: ProjectId, image: ImageId, asked: Reopened, who: Who, request: Request
) -> dict[str, Any]:
    """Let a reader change what he has submitted."""
    needs(who, "admin")
    found, shown = image_here(request, who, project, image)
    for one in drawn(request, project, image, "reader"):
        if one.author == asked.reader and one.state == "submitted":
            audit_of(request).append(
                who, "annotation reopened", project=project, image=image, reader=asked.reader
            )
            one, content = images_of(request).content(one)
            kept = keep(
                request, shown, found, content, kind="reader", author=one.author, state="draft",
                after=one.version,
            )  # fmt: skip
            return {"version": kept.version, "state": kept.state}
    raise Refusal(404, "annotation", "annotation must be one that was submitted")


@router.get("/agreement")
def agreement(project: ProjectId, image: ImageId, who: Who, request: Request) -> dict[str, Any]:
    """Tell how far the readers who submitted agree."""
    needs(who, "admin")
    found, _ = image_here(request, who, project, image)
    readers, volumes = _submitted(request, project, image)
    audit_of(request).append(who, "agreement read", project=project, image=image)
    return agreeing.agreement(readers, volumes, found.labels, found.target_kappa)


@router.post("/consensus")
def consensus(
    project: ProjectId, image: ImageId, asked: Nothing, who: Who, request: Request
) -> dict[str, Any]:
    """Make one label map of all that was submitted, by STAPLE."""
    needs(who, "admin")
    found, shown = image_here(request, who, project, image)
    _, volumes = _submitted(request, project, image)
    content = packed(agreeing.consensus(volumes))
    audit_of(request).append(who, "consensus made", project=project, image=image)
    kept = keep(request, shown, found, content, kind="consensus", author="STAPLE", state="draft")
    return told(request, kept)


@router.put("/final")
def decide(
    project: ProjectId, image: ImageId, who: Who, request: Request, body: Sent
) -> dict[str, Any]:
    """Keep what was decided: the body is a gzipped NIfTI file on the image's grid."""
    needs(who, "admin")
    found, shown = image_here(request, who, project, image)
    content = checked(images_of(request), shown, body, found.labels)
    audit_of(request).append(who, "decided", project=project, image=image)
    kept = keep(request, shown, found, content, kind="final", author=who.person, state="final")
    return told(request, kept)


def _submitted(request: Request, project: str, image: str) -> tuple[list[str], list[Volume]]:
    found = [one for one in drawn(request, project, image, "reader") if one.state == "submitted"]
    if len(found) < 2:
        sentence = f"readers who submitted must be two or more, got {len(found)}"
        raise Refusal(409, "readers", sentence)
    found.sort(key=lambda one: one.author)
    volumes = [read_nifti(images_of(request).mask(one)) for one in found]
    return [one.author for one in found], volumes

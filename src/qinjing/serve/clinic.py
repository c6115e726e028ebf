"""The clinic over HTTP: the worklist, images, and what models and people drew on them.

A study is named by its key and an image by its id in addresses; what names a patient stands in
bodies alone. What is not for somebody's eyes is answered as what is not there.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi import Path as InPath
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field

from qinjing.report.product_class import allowed, must_be_confirmed
from qinjing.serve import looked
from qinjing.serve.audit import Audit
from qinjing.serve.auth import Right, Token
from qinjing.serve.catalogue import Catalogue, Study, StudyState, study_key
from qinjing.serve.drawn import Image, Segmentation
from qinjing.serve.guard import Refusal
from qinjing.serve.images import Images
from qinjing.serve.projects import Projects
from qinjing.serve.session import Who
from qinjing.serve.telling import described, entries, served_of, terms_of, told

router = APIRouter(prefix="/api", tags=["clinic"])
GZIP = "application/gzip"


def sends(*kinds: str) -> dict[int | str, dict[str, Any]]:
    """Say for the OpenAPI document which files a route sends."""
    binary = {"schema": {"type": "string", "format": "binary"}}
    return {200: {"content": dict.fromkeys(kinds, binary)}}


StudyKey = Annotated[str, InPath(pattern="^[0-9a-f]{40}$")]
Id = Annotated[str, InPath(pattern="^[0-9a-f]{32}$")]


class Sought(BaseModel):
    """Which page of which studies."""

    model_config = ConfigDict(extra="forbid")
    search: str = Field(default="", max_length=256)
    state: StudyState | None = None
    after: str | None = Field(default=None, pattern="^[0-9a-f]{40}$")
    limit: int = Field(default=50, ge=1, le=200)


class Nothing(BaseModel):
    """A body without content."""

    model_config = ConfigDict(extra="forbid")


class Looked(BaseModel):
    """Which version of a segmentation was looked at."""

    model_config = ConfigDict(extra="forbid")
    version: int = Field(ge=1, le=10**9)


@router.post("/studies")
def studies(asked: Sought, who: Who, request: Request) -> dict[str, Any]:
    """List studies, the newest first, a page at a time."""
    needs(who, "study.read")
    audit_of(request).append(who, "worklist read")
    catalogue = _catalogue(request)
    found = catalogue.studies(asked.after or "", asked.limit + 1, asked.search, asked.state)
    page = found[: asked.limit]
    return {
        "studies": entries(catalogue, page),
        "next": study_key(page[-1].study_instance_uid) if len(found) > len(page) else None,
        "counts": catalogue.counts(asked.search),
    }


@router.get("/studies/{study}")
def study(study: StudyKey, who: Who, request: Request) -> dict[str, Any]:
    """Tell what is known of a study: its images, and the same patient's other studies."""
    needs(who, "study.read")
    catalogue, found = _catalogue(request), _study(request, study)
    images = catalogue.images.of_study(found.study_instance_uid)
    others = [
        {"study": study_key(one.study_instance_uid), "study_date": one.about["StudyDate"],
         "description": one.about["StudyDescription"], "modality": one.about["Modality"]}
        for one in catalogue.others(found)
    ]  # fmt: skip
    audit_of(request).append(who, "study opened", study=study)
    (entry,) = entries(catalogue, [found])
    return {**entry, "images": [described(one) for one in images], "others": others}


@router.post("/studies/{study}/again")
def again(study: StudyKey, asked: Nothing, who: Who, request: Request) -> dict[str, Any]:
    """Let what failed on a study be tried anew."""
    needs(who, "admin")
    found = _study(request, study)
    audit_of(request).append(who, "study queued again", study=study)
    queued = _catalogue(request).again(found, ("show",))
    return {"queued": queued}


@router.get("/images/{image}")
def image(image: Id, who: Who, request: Request) -> dict[str, Any]:
    """Tell what an image is."""
    return described(seen_image(request, who, image))


@router.get("/images/{image}/volume.nii.gz", response_class=FileResponse, responses=sends(GZIP))
def volume(image: Id, who: Who, request: Request) -> FileResponse:
    """Send an image as NIfTI."""
    found = seen_image(request, who, image)
    audit_of(request).append(who, "image opened", image=image)
    return FileResponse(images_of(request).volume(found.image_id), media_type=GZIP)


@router.get("/images/{image}/segmentations")
def segmentations(image: Id, who: Who, request: Request) -> dict[str, Any]:
    """List what was drawn on an image, of what is for these eyes."""
    found = seen_image(request, who, image)
    drawn = images_of(request).segmentations(found.image_id)
    return {"segmentations": [told(request, one) for one in drawn if _for_eyes(request, who, one)]}


@router.get(
    "/segmentations/{segmentation}/mask.nii.gz", response_class=FileResponse, responses=sends(GZIP)
)
def mask(segmentation: Id, who: Who, request: Request) -> FileResponse:
    """Send a segmentation as NIfTI, whole numbers on its image's grid."""
    one = _segmentation(request, who, segmentation)
    return FileResponse(images_of(request).mask(one), media_type=GZIP)


@router.get("/segmentations/{segmentation}/places")
def places(segmentation: Id, who: Who, request: Request) -> dict[str, Any]:
    """Tell where each label lies."""
    return {"places": looked.places(images_of(request), _segmentation(request, who, segmentation))}


@router.get("/segmentations/{segmentation}/measures")
def measures(segmentation: Id, who: Who, request: Request) -> dict[str, Any]:
    """Tell what a segmentation measures, where its product class lets that out."""
    one = _segmentation(request, who, segmentation)
    _let_out(who, one)
    audit_of(request).append(who, "figures read", segmentation=segmentation)
    return looked.figures(images_of(request), one, terms_of(request, one))


@router.get(
    "/segmentations/{segmentation}/report.{form}", response_class=Response,
    responses=sends("text/html", "application/pdf"),
)  # fmt: skip
def report(
    segmentation: Id,
    form: Literal["html", "pdf"],
    who: Who,
    request: Request,
    language: Annotated[Literal["en", "zh"], Query()] = "en",
) -> Response:
    """Send the report of a segmentation: of a tool, pictures alone."""
    one = _segmentation(request, who, segmentation)
    if allowed("measurement", one.product_class):
        _let_out(who, one)
    model = served_of(request, one)
    card = model.card if model else {"name": one.author}
    files = looked.report(images_of(request), one, card, terms_of(request, one), language)
    if form not in files:
        raise Refusal(404, "form", f"report must be of a form that there is, got {form}")
    audit_of(request).append(who, "report opened", segmentation=segmentation, form=form)
    if form == "pdf":
        return FileResponse(files[form], media_type="application/pdf")
    # A report stands alone: its own style and pictures lie in it, and nothing of it runs.
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'"
    return FileResponse(
        files[form], media_type="text/html; charset=utf-8",
        headers={"content-security-policy": policy},
    )  # fmt: skip


@router.get(
    "/segmentations/{segmentation}/seg.dcm", response_class=Response,
    responses=sends("application/dicom"),
)  # fmt: skip
def seg(segmentation: Id, who: Who, request: Request) -> Response:
    """Send a segmentation as DICOM SEG, beside the series that its image came from."""
    one = _segmentation(request, who, segmentation)
    found = images_of(request).get(one.image_id)
    if found is None or not found.study:
        raise Refusal(409, "source", "image must come from a DICOM series, to be answered in one")
    study = _catalogue(request).place(found.study)
    with tempfile.TemporaryDirectory() as folder:
        file = looked.dicom_seg(images_of(request), found, one, study, Path(folder))
        content = file.read_bytes()
    audit_of(request).append(who, "segmentation exported", segmentation=segmentation)
    return Response(content, media_type="application/dicom")


@router.post("/segmentations/{segmentation}/confirm")
def confirm(segmentation: Id, asked: Looked, who: Who, request: Request) -> dict[str, Any]:
    """Stand, by name, for what a model says; what waited for it is sent."""
    needs(who, "confirm")
    one = _segmentation(request, who, segmentation)
    if one.kind != "model":
        raise Refusal(409, "kind", f"segmentation must be a model's, got a {one.kind}'s")
    if not who.name:
        raise Refusal(403, "name", "reader must have a name: ask for a token with --name")
    found = images_of(request).get(one.image_id)
    waits = must_be_confirmed(one.product_class) and found is not None

    def told_of() -> None:
        audit_of(request).append(
            who, "confirmed", segmentation=segmentation, version=one.version, model=one.author,
            product_class=one.product_class,
        )  # fmt: skip

    study = found.study if found is not None and waits else ""
    looked_at = one.version == asked.version
    if not looked_at or not _catalogue(request).confirm(one, who.person, study, told_of):
        raise Refusal(409, "confirmed", "segmentation must be unconfirmed and as it was looked at")
    return told(request, images_of(request).segmentation(segmentation) or one)


def needs(who: Token, right: Right) -> None:
    """Refuse who has not a right.

    Raises:
        Refusal: 403.
    """
    if not who.may(right):
        raise Refusal(403, "forbidden", f"role must be one that may: {right}")


def seen_image(request: Request, who: Token, image_id: str) -> Image:
    """Return an image for somebody who may see it.

    Raises:
        Refusal: 404, it is not there, or not for these eyes: nobody learns which.
    """
    found = images_of(request).get(image_id)
    if found is None or not (who.may("study.read") or _named(request, who, image_id)):
        raise Refusal(404, "image", "image must be one that is here")
    return found


def _named(request: Request, who: Token, image_id: str) -> bool:
    """Whether a project lets somebody annotate an image."""
    projects: Projects = request.app.state.projects
    return who.may("annotate") and projects.sees(who.person, image_id)


def _let_out(who: Token, one: Segmentation) -> None:
    """Refuse figures that the class does not give, or that nobody has confirmed yet.

    Raises:
        Refusal: 403.
    """
    if not allowed("measurement", one.product_class):
        sentence = f"a product of class {one.product_class} gives no figures"
        raise Refusal(403, "class", sentence)
    waits = one.kind == "model" and must_be_confirmed(one.product_class) and not one.confirmed_by
    if waits and not who.may("confirm"):
        raise Refusal(403, "unconfirmed", "a named reader must confirm it first")


def _for_eyes(request: Request, who: Token, one: Segmentation) -> bool:
    """Readers are blind to one another, and to what was decided until they have submitted."""
    if who.may("admin") or one.kind == "model":
        return True
    if one.kind == "reader":
        return one.author == who.person
    if one.kind != "final" or not who.may("study.read"):
        return False
    project = request.app.state.projects.get(one.project)
    if project is None or who.person not in project.readers:
        return True
    mine = [own for own in images_of(request).segmentations(one.image_id, "reader")
            if own.author == who.person and own.project == one.project]  # fmt: skip
    return any(own.state == "submitted" for own in mine)


def _segmentation(request: Request, who: Token, segmentation_id: str) -> Segmentation:
    one = images_of(request).segmentation(segmentation_id)
    missing = Refusal(404, "segmentation", "segmentation must be one that is here")
    if one is None or not _for_eyes(request, who, one):
        raise missing
    try:
        seen_image(request, who, one.image_id)
    except Refusal:
        raise missing from None
    return one


def _study(request: Request, key: str) -> Study:
    found = _catalogue(request).study_of(key)
    if found is None:
        raise Refusal(404, "study", "study must be one that is here")
    return found


def _catalogue(request: Request) -> Catalogue:
    catalogue: Catalogue = request.app.state.catalogue
    return catalogue


def images_of(request: Request) -> Images:
    """Return the service's images."""
    return _catalogue(request).images


def audit_of(request: Request) -> Audit:
    """Return the service's record of who looked and who changed what."""
    audit: Audit = request.app.state.audit
    return audit

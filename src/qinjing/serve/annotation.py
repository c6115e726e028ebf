"""Annotation by several readers over HTTP: blind to one another, then compared and decided.

A project and its images are there for who it names, and for an admin; to all others they are as
what is not there. A reader sees and changes his own labels alone. What he submitted he changes
only after an admin reopened it.
"""

from __future__ import annotations

import io
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Body, Header, Query, Request, Response
from fastapi import Path as InPath
from isal import igzip
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from qinjing.data.nifti import read_header, read_nifti, write_nifti
from qinjing.errors import InputError
from qinjing.serve.auth import Token, person_of
from qinjing.serve.clinic import GZIP, audit_of, images_of, needs, seen_image, sends
from qinjing.serve.drawn import Image, Segmentation, StaleError
from qinjing.serve.guard import Refusal
from qinjing.serve.images import Images
from qinjing.serve.labelling.desk import desk
from qinjing.serve.projects import TARGET_KAPPA, Project, Projects
from qinjing.serve.session import Who
from qinjing.serve.settings import ServeConfig
from qinjing.serve.telling import told
from qinjing.volume import Volume

router = APIRouter(prefix="/api", tags=["annotation"])
ProjectId = Annotated[str, InPath(pattern="^[0-9a-f]{32}$")]
ImageId = Annotated[str, InPath(pattern="^[0-9a-f]{32}$")]
Sent = Annotated[bytes, Body(media_type=GZIP)]
_HEADER_BYTES = 1 << 20  # room for a NIfTI header and its extensions
_MOST_BYTES = 8  # a voxel
_MOST_LABEL = 65535
_OWN = "/projects/{project}/images/{image}/annotation"


def _printable(text: str) -> str:
    if not text.isprintable() or not text.strip():
        raise ValueError("printable text")
    return text.strip()


def _told_apart(labels: dict[str, str]) -> dict[str, str]:
    if any(int(value) > _MOST_LABEL for value in labels):
        raise ValueError(f"values of {_MOST_LABEL} or less")
    if len(set(labels.values())) < len(labels):
        raise ValueError("another name for each value")
    return labels


Text = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_printable)]
Person = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(person_of)]
Ids = Annotated[list[Annotated[str, Field(pattern="^[0-9a-f]{32}$")]], Field(max_length=1000)]
Persons = Annotated[list[Person], Field(max_length=50)]
Labels = Annotated[
    dict[Annotated[str, Field(pattern="^[1-9][0-9]{0,4}$")], Text],
    Field(min_length=1, max_length=100),
    AfterValidator(_told_apart),
]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NewProject(_Asked):
    """What shall be labelled, and by whom."""

    name: Text
    labels: Labels
    images: Ids = []
    readers: Persons = []
    target_kappa: float = Field(default=TARGET_KAPPA, ge=0, le=1)


class MoreImages(_Asked):
    """More images of a project."""

    images: Ids


class Readers(_Asked):
    """Who is put into a project, and who is taken out."""

    readers: Persons = []
    without: Persons = []


@router.get("/projects")
def projects(who: Who, request: Request) -> dict[str, Any]:
    """List the projects that name the caller, all for an admin."""
    needs(who, "annotate")
    found = _projects(request).of(None if who.may("admin") else who.person)
    return {"projects": [_told(request, who, one) for one in found]}


@router.post("/projects")
def make(asked: NewProject, who: Who, request: Request) -> dict[str, Any]:
    """Make a project."""
    needs(who, "admin")
    _known(request, asked.images)
    audit_of(request).append(who, "project made", images=len(asked.images), readers=asked.readers)
    labels = {int(value): name for value, name in asked.labels.items()}
    made = _projects(request).make(
        asked.name, labels, asked.images, asked.readers, asked.target_kappa
    )
    return _told(request, who, made)


@router.get("/projects/{project}")
def project(project: ProjectId, who: Who, request: Request) -> dict[str, Any]:
    """Tell how far a project has come: one's own labels, and for an admin everybody's."""
    found = _project(request, who, project)
    known = images_of(request).some(found.images)
    by_image = _by_image(request, project)
    images = []
    for image_id in found.images:
        image, here = known.get(image_id), by_image[image_id]
        mine = next((one for one in here if _is_own(one, who)), None)
        entry: dict[str, Any] = {
            "image": image_id,
            "name": image.name if image else "",
            "mine": mine.state if mine else None,
            "version": mine.version if mine else 0,
        }
        if who.may("admin"):
            entry["submitted"] = _submissions(here)
            entry["final"] = any(one.kind == "final" for one in here)
        images.append(entry)
    return {**_told(request, who, found), "images": images}


@router.post("/projects/{project}/images")
def add_images(project: ProjectId, asked: MoreImages, who: Who, request: Request) -> dict[str, Any]:
    """Put images into a project."""
    needs(who, "admin")
    _project(request, who, project)
    _known(request, asked.images)
    audit_of(request).append(who, "images added", project=project, count=len(asked.images))
    _projects(request).put(project, images=asked.images)
    return _told(request, who, _project(request, who, project))


@router.post("/projects/{project}/readers")
def change_readers(
    project: ProjectId, asked: Readers, who: Who, request: Request
) -> dict[str, Any]:
    """Put readers into a project, and take others out of it."""
    needs(who, "admin")
    _project(request, who, project)
    audit_of(request).append(
        who, "readers changed", project=project, readers=asked.readers, without=asked.without
    )
    _projects(request).put(project, readers=asked.readers)
    _projects(request).remove(project, asked.without)
    return _told(request, who, _project(request, who, project))


@router.get("/projects/{project}/next")
def next_image(
    project: ProjectId, who: Who, request: Request, look: bool = False
) -> dict[str, Any]:
    """Tell which image to label next: of those that fewest have labelled, the least sure one.

    That is the one of which a served model is least sure, of those that it has looked at; where it
    has looked at none, the first. `look` lets it look at more, which takes a while.
    """
    found = _project(request, who, project)
    by_image = _by_image(request, project)
    left = [
        image_id
        for image_id in found.images
        if not any(_is_own(one, who) and one.state == "submitted" for one in by_image[image_id])
    ]
    fewest = min((_submissions(by_image[one]) for one in left), default=0)
    among = [one for one in left if _submissions(by_image[one]) == fewest]
    here, doubts = images_of(request).some(among), request.app.state.doubts
    shown = [here[one] for one in among if one in here]
    if look:
        with desk(request).turn():
            doubts.look(shown)
    return {"image": doubts.first(shown)}


@router.get(_OWN, response_class=Response, responses=sends(GZIP))
def own(project: ProjectId, image: ImageId, who: Who, request: Request) -> Response:
    """Send one's own labels."""
    image_here(request, who, project, image)
    mine = _own(request, who, project, image)
    if mine is None:
        raise Refusal(404, "annotation", "annotation must be one that was saved")
    mine, content = images_of(request).content(mine)
    headers = {"ETag": _etag(mine), "X-State": mine.state}
    return Response(content, media_type=GZIP, headers=headers)


@router.put(_OWN)
def save(
    project: ProjectId,
    image: ImageId,
    who: Who,
    request: Request,
    response: Response,
    body: Sent,
    state: Annotated[Literal["draft", "submitted"], Query()] = "draft",
    if_match: Annotated[str | None, Header(max_length=40)] = None,
) -> dict[str, Any]:
    """Keep one's own labels: the body is a gzipped NIfTI file on the image's grid."""
    found, shown = image_here(request, who, project, image)
    mine = _own(request, who, project, image)
    if mine is not None and mine.state == "submitted":
        raise Refusal(409, "submitted", "annotation must be open: an admin can reopen it")
    content = checked(images_of(request), shown, body, found.labels)
    did = "annotation submitted" if state == "submitted" else "annotation saved"
    audit_of(request).append(who, did, project=project, image=image)
    kept = keep(
        request, shown, found, content, kind="reader", author=who.person, state=state,
        after=_version(if_match),
    )  # fmt: skip
    response.headers["ETag"] = _etag(kept)
    return {"version": kept.version, "state": kept.state}


@router.get("/projects/{project}/images/{image}/proposals")
def proposals(project: ProjectId, image: ImageId, who: Who, request: Request) -> dict[str, Any]:
    """List what models drew on an image."""
    image_here(request, who, project, image)
    return {
        "segmentations": [
            told(request, one) for one in images_of(request).segmentations(image, "model")
        ]
    }


def checked(images: Images, image: Image, body: bytes, labels: Any) -> bytes:
    """Return labels that somebody sent, as we keep them.

    What is unpacked is never more than the image's own grid could take, whatever was sent.

    Args:
        images: where the image lies.
        image: on whose grid they must be.
        body: a gzipped NIfTI file.
        labels: value → name, of which they must be, or background.

    Raises:
        Refusal: 400, they are not.
    """
    most = int(np.prod(image.shape)) * _MOST_BYTES + _HEADER_BYTES
    try:
        with igzip.IGzipFile(fileobj=io.BytesIO(body)) as sent:
            content = sent.read(most + 1)
    except (OSError, EOFError, ValueError):
        raise Refusal(400, "labels", "labels must be a gzipped NIfTI file") from None
    if len(content) > most:
        raise Refusal(400, "grid", "labels must be on the image's grid, and are larger")
    with tempfile.TemporaryDirectory(prefix="qinjing-") as folder:
        file = Path(folder) / "labels.nii"
        file.write_bytes(content)
        grid = read_nifti(images.volume(image.image_id))
        try:
            if tuple(reversed(read_header(file).shape)) != image.shape:
                raise Refusal(400, "grid", "labels must be on the image's grid, of its shape")
            volume = read_nifti(file)
        except InputError:
            raise Refusal(400, "labels", "labels must be a gzipped NIfTI file") from None
        if grid.grid_difference(volume):
            raise Refusal(400, "grid", "labels must be on the image's grid, and lie elsewhere")
    values = np.unique(volume.voxels)
    if not np.isin(values, [0, *labels]).all():
        raise Refusal(400, "labels", "labels must be those of the project, or 0")
    return packed(volume.with_voxels(volume.voxels.astype(np.uint16)))


def packed(volume: Volume) -> bytes:
    """Return labels as a gzipped NIfTI file."""
    with tempfile.TemporaryDirectory(prefix="qinjing-") as folder:
        file = Path(folder) / "labels.nii.gz"
        write_nifti(file, volume)
        return file.read_bytes()


def keep(
    request: Request, image: Image, project: Project, content: bytes, **said: Any
) -> Segmentation:
    """Keep labels of a project; see `Images.add_segmentation`.

    Raises:
        Refusal: 409, they were changed elsewhere meanwhile.
    """
    config: ServeConfig = request.app.state.config
    try:
        return images_of(request).add_segmentation(
            image.image_id, labels=project.labels, product_class=config.product_class,
            content=content, project=project.project_id, **said,
        )  # fmt: skip
    except StaleError:
        sentence = "labels must be of the version that is here: they were saved elsewhere meanwhile"
        raise Refusal(409, "version", sentence) from None


def _told(request: Request, who: Token, one: Project) -> dict[str, Any]:
    found = images_of(request).of_project(one.project_id)
    counted = "final" if who.may("admin") else "reader"
    done = {
        own.image_id
        for own in found
        if own.kind == counted and (counted == "final" or _is_own(own, who))
        and own.state != "draft"
    }  # fmt: skip
    return {
        "project": one.project_id,
        "name": one.name,
        "labels": {str(value): name for value, name in one.labels.items()},
        "images": len(one.images),
        "readers": list(one.readers) if who.may("admin") else [who.person],
        "target_kappa": one.target_kappa,
        "done": len(done),
        "mine": who.person in one.readers,
    }


def drawn(request: Request, project: str, image: str, kind: Any) -> list[Segmentation]:
    """Return what was drawn of a kind on an image in a project."""
    found = images_of(request).segmentations(image, kind)
    return [one for one in found if one.project == project]


def _by_image(request: Request, project: str) -> Mapping[str, list[Segmentation]]:
    found: defaultdict[str, list[Segmentation]] = defaultdict(list)
    for one in images_of(request).of_project(project):
        found[one.image_id].append(one)
    return found


def _submissions(here: Sequence[Segmentation]) -> int:
    return sum(one.kind == "reader" and one.state == "submitted" for one in here)


def _own(request: Request, who: Token, project: str, image: str) -> Segmentation | None:
    found = drawn(request, project, image, "reader")
    return next((one for one in found if one.author == who.person), None)


def _is_own(one: Segmentation, who: Token) -> bool:
    return one.kind == "reader" and one.author == who.person


def _project(request: Request, who: Token, project_id: str) -> Project:
    """The project, for who it names."""
    needs(who, "annotate")
    found = _projects(request).get(project_id)
    if found is None or not (who.may("admin") or who.person in found.readers):
        raise Refusal(404, "project", "project must be one that is here")
    return found


def image_here(request: Request, who: Token, project: str, image: str) -> tuple[Project, Image]:
    """Return a project and its image, for who it names.

    Raises:
        Refusal: 403 or 404, it is not for these eyes, or not there.
    """
    found = _project(request, who, project)
    if image not in found.images:
        raise Refusal(404, "image", "image must be one that is here")
    return found, seen_image(request, who, image)


def _known(request: Request, images: list[str]) -> None:
    if len(images_of(request).some(images)) < len(set(images)):
        raise Refusal(404, "image", "image must be one that is here")


def _version(if_match: str | None) -> int:
    """The version that was changed; 0 for none."""
    text = (if_match or "0").strip().removeprefix("W/").strip('"')
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise Refusal(400, "version", "If-Match must be a version")
    return int(text)


def _etag(one: Segmentation) -> str:
    return f'"{one.version}"'


def _projects(request: Request) -> Projects:
    projects: Projects = request.app.state.projects
    return projects

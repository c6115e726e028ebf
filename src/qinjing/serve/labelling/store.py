"""The data store of MONAI Label's protocol: images and labels, fetched and saved.

Source: monailabel 0.8.5, endpoints/datastore.py.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Form, Request, Response, UploadFile
from fastapi.responses import FileResponse

from qinjing.data.layouts.discover import label_values
from qinjing.serve.audit import Audit
from qinjing.serve.auth import Token
from qinjing.serve.clinic import GZIP, needs
from qinjing.serve.drawn import Image
from qinjing.serve.guard import Refusal
from qinjing.serve.labelling import data
from qinjing.serve.labelling.data import Labeller
from qinjing.serve.labelling.desk import object_in, sent
from qinjing.serve.labelling.files import labels_on, packed, segment_names, taken
from qinjing.serve.projects import Project
from qinjing.volume import Volume

router = APIRouter(prefix="/datastore")
Tag = Literal["final", "original"]
Params = Annotated[str, Form(max_length=60_000)]


@router.get("/")
def datastore(
    who: Labeller, request: Request, output: Literal["stats", "all", "train"] = "stats"
) -> Any:
    """Tell what there is: counts, everything, or what is labelled."""
    if output == "stats":
        return data.status(request, who)
    found = data.everything(request, who)
    if output == "all":
        return found
    labelled = [one for one, said in found["objects"].items() if "final" in said["labels"]]
    return [{"image": one, "label": one} for one in labelled]


@router.put("/")
@router.put("/image")
def add_image(
    who: Labeller,
    request: Request,
    file: UploadFile,
    image: str | None = None,
    params: Params = "{}",
) -> dict[str, Any]:
    """Keep an image that somebody brings; he goes on calling it as he named it."""
    needs(who, "study.read")
    given = image or file.filename or ""
    if not given:
        raise Refusal(400, "image", "image must have a name")
    with tempfile.TemporaryDirectory(prefix="qinjing-") as folder:
        with sent():
            taken_in = taken(file.file.read(), Path(folder))
        kept = data.add_upload(request, who, given, taken_in)
    _audit(request).append(who, "image added", image=kept.image_id)
    return {"image": image or data.public_id(who, kept.image_id)}


@router.delete("/")
@router.delete("/image")
@router.delete("/label")
def remove(who: Labeller) -> None:
    """Refuse to remove an image or a label: the record would speak of what is not there."""
    needs(who, "admin")
    raise Refusal(405, "kept", "images and labels must stay", {"Allow": "GET, PUT"})


@router.get("/image", response_class=FileResponse)
def image_file(image: str, request: Request) -> FileResponse:
    """Send an image to who shows a token, or to whom it was just handed out as the next."""
    who, found = _shown(request, image)
    _audit(request).append(who, "image opened", image=found.image_id)
    return FileResponse(
        data.images_of(request).volume(found.image_id), media_type=GZIP,
        filename=f"{found.image_id}.nii.gz",
    )  # fmt: skip


@router.head("/image")
def image_is_there(image: str, request: Request, check_sum: str | None = None) -> Response:
    """Say whether an image is there, and as a client has it."""
    _, found = _shown(request, image)
    kind, _, digest = (check_sum or "").rpartition(":")
    file = data.images_of(request).volume(found.image_id)
    if check_sum and (kind not in ("", "SHA256") or digest != _sha256(file)):
        raise Refusal(404, "image", "image must be one that is here")
    return Response()


@router.get("/image/info")
def image_info(image: str, who: Labeller, request: Request) -> dict[str, Any]:
    """Tell what stands beside an image."""
    return data.image_info(who, data.sought(request, who, image))


@router.put("/label")
def save_label(
    image: str,
    who: Labeller,
    request: Request,
    label: UploadFile,
    tag: Literal["final", "original", ""] = "final",
    params: Params = "{}",
) -> dict[str, Any]:
    """Keep what somebody drew, as his: submitted, or a draft where the tag is "original"."""
    needs(who, "annotate")
    found, images = data.sought(request, who, image), data.images_of(request)
    project = data.project_of(request, who, found.image_id)
    state: Literal["draft", "submitted"] = "draft" if tag == "original" else "submitted"
    _may_still_save(request, who, found, project, state)
    content, said = label.file.read(), object_in(params)
    with tempfile.TemporaryDirectory(prefix="qinjing-") as folder:
        with sent():
            labels = labels_on(content, images.volume(found.image_id), Path(folder))
        names = _names(request, labels, said, content, project)
        if project:
            labels, names = _as_in(project, labels, names)
        kept = images.add_segmentation(
            found.image_id, kind="reader", author=who.person, labels=names,
            product_class=request.app.state.config.product_class,
            content=packed(labels, Path(folder)), state=state,
            project=project.project_id if project else "",
        )  # fmt: skip
    data.note(request, kept, said)
    _audit(request).append(
        who, f"annotation {state}", image=found.image_id, segmentation=kept.segmentation_id,
        version=kept.version,
    )  # fmt: skip
    return {"image": image, "label": image}


@router.get("/label", response_class=FileResponse)
def label_file(label: str, tag: Tag, who: Labeller, request: Request) -> FileResponse:
    """Send a label."""
    found, one = data.tagged(request, who, label, tag)
    return FileResponse(
        data.images_of(request).mask(one), media_type=GZIP, filename=f"{found.image_id}.nii.gz"
    )


@router.head("/label")
def label_is_there(image: str, tag: Tag, who: Labeller, request: Request) -> Response:
    """Say whether a label is there."""
    data.tagged(request, who, image, tag)
    return Response()


@router.get("/label/info")
def label_info(label: str, tag: Tag, who: Labeller, request: Request) -> dict[str, Any]:
    """Tell what stands beside a label; nothing where there is none."""
    try:
        return data.label_info(request, data.tagged(request, who, label, tag)[1])
    except Refusal as refusal:
        if refusal.code != "label":
            raise
        return {}


@router.put("/label/info")
def put_label_info(
    label: str, tag: Tag, who: Labeller, request: Request, info: Params = "{}"
) -> None:
    """Keep what somebody says beside his label."""
    needs(who, "annotate")
    _, one = data.tagged(request, who, label, tag)
    data.note(request, one, object_in(info))


@router.put("/updatelabelinfo")
def update_label_info(
    label: str, tag: Tag, who: Labeller, request: Request, params: Params = "{}"
) -> None:
    """Do the same, as 3D Slicer's reviewer asks for it."""
    put_label_info(label, tag, who, request, params)


def _shown(request: Request, image: str) -> tuple[Token, Image]:
    shows = "authorization" in request.headers or request.headers.get("cookie")
    if not shows:
        return data.by_seal(request, image)
    who = data.labeller(request)
    return who, data.sought(request, who, image)


def _may_still_save(
    request: Request, who: Token, image: Image, project: Project | None, state: str
) -> None:
    """Refuse to change what was submitted: in a project at all, elsewhere back to a draft."""
    own = [
        one
        for one in data.images_of(request).segmentations(image.image_id, "reader")
        if one.author == who.person and one.state != "draft"
        and one.project == (project.project_id if project else "")
    ]  # fmt: skip
    if own and project:
        raise Refusal(409, "submitted", "annotation must be open: an admin can reopen it")
    if own and state == "draft":
        raise Refusal(409, "tag", 'tag must be "final": a label of yours is submitted')


def _as_in(
    project: Project, labels: Volume, names: Mapping[int, str]
) -> tuple[Volume, dict[int, str]]:
    """Labels with the values that a project gives to their names.

    Raises:
        Refusal: 400, one has a name that the project does not know.
    """
    values = {name: value for value, name in project.labels.items()}
    table = np.zeros(65536, np.uint16)
    for old in (int(value) for value in label_values(labels.voxels) if value):
        if names[old] not in values:
            known = ", ".join(project.labels.values())
            raise Refusal(400, "labels", f"labels must be of the project: {known}")
        table[old] = values[names[old]]
    return labels.with_voxels(table[labels.voxels]), dict(project.labels)


def _names(
    request: Request,
    labels: Volume,
    said: Mapping[str, Any],
    content: bytes,
    project: Project | None,
) -> dict[int, str]:
    """Value → name, as the client says, the file, the project or the models; else its own."""
    told = said.get("label_info")
    known: dict[int, str] = segment_names(content)
    for one in told if isinstance(told, list) else []:
        value, name = (one.get("idx"), one.get("name")) if isinstance(one, dict) else (None, None)
        if isinstance(value, int) and 0 < value <= 65535 and isinstance(name, str):
            known[value] = name
    if not known and project:
        known = dict(project.labels)
    elif not known:
        for model in data.models_of(request).values():
            known = dict(model.labels()[0]) | known
    there = {int(value): "" for value in label_values(labels.voxels) if value}
    return {
        value: name if name.isprintable() and 0 < len(name) <= 100 else f"label {value}"
        for value, name in sorted((there | known).items())
    }


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _audit(request: Request) -> Audit:
    audit: Audit = request.app.state.audit
    return audit

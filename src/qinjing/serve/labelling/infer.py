"""What models say in MONAI Label's protocol: a segmentation of an image, and what to label next.

Source: monailabel 0.8.5, endpoints/infer.py, endpoints/session.py and
tasks/infer/basic_infer.py; 3D Slicer's plug-in gives the labels that an answer names to its
values in order, so that an answer names those alone that it holds.
"""

from __future__ import annotations

import json
import secrets
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Form, Request, Response, UploadFile
from fastapi.responses import FileResponse

from qinjing.data.case import Case
from qinjing.data.layouts.discover import label_values
from qinjing.data.nifti import read_nifti
from qinjing.report.declared import ServedModel
from qinjing.report.product_class import must_be_confirmed
from qinjing.serve.audit import Audit
from qinjing.serve.auth import Token
from qinjing.serve.doubts import Doubts
from qinjing.serve.drawn import Image
from qinjing.serve.guard import Refusal
from qinjing.serve.labelling import data
from qinjing.serve.labelling.data import CLICK, Labeller
from qinjing.serve.labelling.desk import desk, object_in, sent
from qinjing.serve.labelling.files import encoded, packed, taken
from qinjing.volume import Volume

router = APIRouter()
STRATEGIES = {
    "first": "the image that came first",
    "random": "any image",
    "uncertainty": "the image of which a model is least sure, of those that it has looked at",
}
_MOST_CLICKS = 500
_BYTES = "application/octet-stream"
Params = Annotated[str, Form(max_length=1_000_000)]


@router.post("/infer/{model}", response_class=Response)
def infer(
    model: str,
    who: Labeller,
    request: Request,
    image: str = "",
    session_id: str = "",
    output: Literal["image", "json", "all", "dicom_seg"] = "all",
    params: Params = "{}",
    file: UploadFile | None = None,
    label: UploadFile | None = None,
) -> Response:
    """Let a model segment an image: one that is here, of a session, or one that comes along."""
    asked = None if model == CLICK else _model(request, model)
    said, here = object_in(params), desk(request)
    with here.turn() as folder:
        known = None
        if file is not None:
            with sent():
                place = taken(file.file.read(), folder)
        elif session_id:
            place = here.session(who, session_id).image
        else:
            known = data.sought(request, who, image)
            place = data.images_of(request).volume(known.image_id)
            _asked(request, who, known, asked)
        if asked is None:
            labels, names = _clicked(place, said), {str(said.get("label") or "structure"): 1}
        else:
            labels = _segmented(asked, place, folder)
            names = {name: value for value, name in asked.labels()[0].items()}
        if output == "dicom_seg":
            return _dicom_seg(request, asked, known, labels, folder)
        there = {int(value) for value in label_values(labels.voxels)}
        names = {name: value for name, value in names.items() if value in there}
        told = json.dumps({"label_names": names})
        if output == "json":
            return Response(told, media_type="application/json")
        with sent():
            made = encoded(labels, said, folder)
        return _file(made) if output == "image" else _multipart(told, made)


@router.post("/activelearning/{strategy}")
def next_sample(
    strategy: str, who: Labeller, request: Request, params: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Tell which image to label next; nothing where all are labelled."""
    if strategy not in STRATEGIES:
        raise Refusal(404, "strategy", f"strategy must be one of {', '.join(STRATEGIES)}")
    images = data.images_of(request)
    left = [
        one
        for one in data.visible(request, who)
        if "final" not in data.tags_of(images, who, one.image_id)
    ]
    if not left:
        return {}
    if strategy == "uncertainty":
        chosen, doubt = _least_sure(request, left)
        return data.hand_out(request, who, chosen) | {"entropy": doubt}
    chosen = left[0] if strategy == "first" else secrets.choice(left)
    return data.hand_out(request, who, chosen)


@router.put("/session/")
def create_session(
    who: Labeller, request: Request, files: list[UploadFile], expiry: int = 0
) -> dict[str, Any]:
    """Take an image in for a while, to segment it and keep nothing."""
    if len(files) != 1:
        raise Refusal(400, "files", "session must be of one NIfTI or NRRD file")
    here = desk(request)
    with tempfile.TemporaryDirectory(prefix="qinjing-") as folder:
        with sent():
            file = taken(files[0].file.read(), Path(folder))
        session_id = here.keep_session(who.person, file, expiry)
    told = here.session(who, session_id).told(session_id)
    return {"session_id": session_id, "session_info": told}


@router.get("/session/{session_id}")
def get_session(session_id: str, who: Labeller, request: Request, image: bool = False) -> Any:
    """Tell of a session, or send its image."""
    found = desk(request).session(who, session_id)
    if image:
        return FileResponse(found.image, media_type=_BYTES, filename=found.image.name)
    return found.told(session_id)


@router.delete("/session/{session_id}")
def remove_session(session_id: str, who: Labeller, request: Request) -> dict[str, Any]:
    """End a session; its image goes."""
    return desk(request).session(who, session_id, ends=True).told(session_id)


def described(model: ServedModel | None) -> dict[str, Any]:
    """Return what a client needs to know of a model; None is the one that follows clicks."""
    if model is None:
        return {
            "type": "deepgrow", "labels": [], "dimension": 3, "config": {},
            "description": "one structure from clicks, without a model",
        }  # fmt: skip
    known = model.declared
    words = [f"{known.modality}, class {known.product_class}", known.intended_use]
    return {
        "type": "segmentation",
        "labels": {name: value for value, name in model.labels()[0].items()},
        "dimension": 3,
        "description": "; ".join(filter(None, words)),
        "config": {},
    }


def _model(request: Request, name: str) -> ServedModel:
    found = data.models_of(request).get(name)
    if found is None:
        raise Refusal(404, "model", "model must be one that is served here")
    return found


def _asked(request: Request, who: Token, image: Image, model: ServedModel | None) -> None:
    """Refuse an image of another modality than the model was declared for; record the others."""
    wanted = model.declared.modality if model else image.modality
    if image.modality not in ("", wanted):
        raise Refusal(409, "modality", f"image must be of {wanted}, got {image.modality}")
    audit: Audit = request.app.state.audit
    name = model.name if model else CLICK
    audit.append(who, "model asked", image=image.image_id, model=name)


def _clicked(image: Path, said: Mapping[str, Any]) -> Volume:
    """The one structure that clicks point at: voxels (i, j, k) of the file, inside and outside.

    Raises:
        Refusal: 400, these are no clicks into the image.
    """
    from qinjing.tasks.click import Click, segment_click

    clicks = []
    for name in ("foreground", "background"):
        points = said.get(name) or []
        for point in points if isinstance(points, list) else [None]:
            if not (isinstance(point, list) and [type(at) for at in point] == [int] * 3):
                raise Refusal(400, "clicks", f"{name} must be a list of voxels [i, j, k]")
            i, j, k = point
            clicks.append(Click((k, j, i), name == "foreground"))
    if len(clicks) > _MOST_CLICKS:
        raise Refusal(400, "clicks", f"clicks must be {_MOST_CLICKS} or fewer")
    volume = read_nifti(image)
    with sent():
        inside = segment_click(volume, clicks)
    return Volume(inside.astype(np.uint8), volume.affine)


def _segmented(model: ServedModel, image: Path, folder: Path) -> Volume:
    """What `qinjing predict` would write.

    Raises:
        Refusal: 422, the image cannot be segmented by this model.
    """
    from qinjing.serve.answer import segmenter
    from qinjing.tasks.predict import segment_cases

    case = Case("segmentation", "", (image,))
    said = segment_cases(segmenter(model.run), [case], folder)
    if said["refused"]:
        raise Refusal(422, "image", "image must be one that this model can segment")
    return read_nifti(folder / "segmentation.nii.gz")


def _dicom_seg(
    request: Request, model: ServedModel | None, image: Image | None, labels: Volume, folder: Path
) -> Response:
    """The answer as DICOM SEG, beside the series that the image came from."""
    from qinjing.serve.looked import dicom_seg

    images = data.images_of(request)
    if model is None or image is None or not image.study:
        raise Refusal(409, "source", "a model must answer, an image of a DICOM series")
    own = [one for one in images.segmentations(image.image_id, "model") if one.author == model.name]
    if not own and must_be_confirmed(model.product_class):
        raise Refusal(409, "source", "the model must have answered the study first")
    kept = own[-1] if own else images.add_segmentation(
        image.image_id, kind="model", author=model.name, labels=model.labels()[0],
        product_class=model.product_class, content=packed(labels, folder),
    )  # fmt: skip
    study = request.app.state.catalogue.place(image.study)
    file = dicom_seg(images, image, kept, study, folder)
    return Response(file.read_bytes(), media_type="application/dicom", headers=_called("seg.dcm"))


def _least_sure(request: Request, left: Sequence[Image]) -> tuple[Image, float]:
    """The image of which its model is least sure; a request looks at some more.

    Raises:
        Refusal: 404, no model is for any of them.
    """
    doubts: Doubts = request.app.state.doubts
    with desk(request).turn():
        doubts.look(left)
    known = [(doubt, one) for one in left if (doubt := doubts.of(one)) is not None]
    if not known:
        raise Refusal(404, "strategy", "strategy must be one that a served model can follow")
    doubt, chosen = max(known, key=lambda pair: pair[0])
    return chosen, round(doubt, 5)


def _file(made: Path) -> Response:
    return Response(made.read_bytes(), media_type=_BYTES, headers=_called(made.name))


def _called(name: str) -> dict[str, str]:
    return {"Content-Disposition": f'attachment; filename="{name}"'}


def _multipart(told: str, made: Path) -> Response:
    """Both, as a form: "params" and the file "image".

    Source: RFC 7578; the client saves the file under the name that stands here.
    """
    edge = secrets.token_hex(16)
    parts = (
        f'--{edge}\r\nContent-Disposition: form-data; name="params"\r\n'
        f"Content-Type: application/json\r\n\r\n{told}\r\n"
        f'--{edge}\r\nContent-Disposition: form-data; name="image"; filename="{made.name}"\r\n'
        f"Content-Type: {_BYTES}\r\n\r\n"
    )
    content = parts.encode() + made.read_bytes() + f"\r\n--{edge}--\r\n".encode()
    return Response(content, media_type=f"multipart/form-data; boundary={edge}")

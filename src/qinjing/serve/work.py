"""What is done with a study once it is complete, by workers on this machine or others.

A worker takes a job, does it, and says so; while it works a second thread renews the lease. What a
job makes it makes anew in a folder of its own, so that a second attempt after a lost worker gives
the same and nothing is sent twice under another name. What was made and could not be sent, since
the archive is away, is not made again: it waits until the archive is back.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qinjing.config import write_json
from qinjing.errors import ConfigError, InputError, QinjingError
from qinjing.serve.catalogue import Catalogue
from qinjing.serve.jobs import AWAY_S, LEASE_S, Job, Queue
from qinjing.serve.peer import PassingError
from qinjing.serve.send import Place, send

if TYPE_CHECKING:
    from qinjing.serve.answer import ServedModel

LOG = logging.getLogger("qinjing.serve.work")
_WAITING = "waiting.json"  # beside what is to be sent
_Made = tuple[list[Path], dict[str, Any]]  # files to be sent, and what is told of the job


@dataclass(frozen=True)
class WorkConfig:
    """What a worker can do.

    Attributes:
        kinds: of jobs, of `KINDS`.
        secret: of pseudonyms, for `deidentify`.
        keep: more than the basic profile keeps, for `deidentify`.
        models: that answer studies, for `predict`, and for `release` of what was confirmed.
        destination: where results are sent; they stay in their folder where there is none.
        lease_s: seconds after which a job of a lost worker goes to another.
        idle_s: seconds between two looks at an empty queue.

    Raises:
        ConfigError: a kind is unknown, or wants what is not given.
    """

    kinds: tuple[str, ...]
    secret: bytes | None = None
    keep: tuple[str, ...] = ()
    models: tuple[ServedModel, ...] = ()
    destination: Place | None = None
    lease_s: float = LEASE_S
    idle_s: float = 0.5

    def __post_init__(self) -> None:
        unknown = sorted(set(self.kinds) - set(KINDS))
        if unknown or not self.kinds:
            raise ConfigError("work", f"of {', '.join(KINDS)}", ", ".join(unknown) or "none")
        if "deidentify" in self.kinds and self.secret is None:
            raise ConfigError("--secret", "given, to de-identify", "none")
        if "predict" in self.kinds and not self.models:
            raise ConfigError("--model", "given, to predict", "none")
        names = [model.name for model in self.models]
        if len(set(names)) < len(names):
            raise ConfigError("--model", "of one name each", ", ".join(sorted(names)))


def work(
    catalogue: Catalogue,
    config: WorkConfig,
    ended: threading.Event,
    tell: Callable[[Job, str], None] = lambda *_: None,
) -> int:
    """Do jobs until the event is set; return how many were done.

    Args:
        catalogue: whose queue it is.
        config: what to do.
        ended: set it to stop after the job at hand.
        tell: told of each job and what became of it: "done", "waiting", "failed", "lost".
    """
    name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    count = 0
    while not ended.is_set():
        try:
            job = catalogue.queue.take(name, config.kinds, config.lease_s)
            if job is not None:
                became = _do(job, catalogue, config)
                count += became == "done"
                tell(job, became)
                continue
        except ConfigError as error:  # a database that is away comes back, and so does the job
            LOG.error("the queue could not be used: %s", error)
        ended.wait(config.idle_s)
    return count


def _do(job: Job, catalogue: Catalogue, config: WorkConfig) -> str:
    queue = catalogue.queue
    with _held(job, queue, config.lease_s):
        try:
            result = KINDS[job.kind](job, catalogue, config)
        except PassingError as error:
            if job.reason != str(error):  # a line for each change, not for each minute
                LOG.warning("job %d, %s: %s", job.job_id, job.kind, error)
            away_s = max(AWAY_S, error.after_s) if error.away else 0.0
            return queue.failed(job, str(error), away_s=away_s)
        except ConfigError as error:  # how this worker was started, or its database: not the study
            LOG.warning("job %d, %s: %s", job.job_id, job.kind, error)
            return queue.failed(job, str(error))
        except InputError as error:  # the study's fault: as much at the next attempt
            LOG.warning("job %d, %s: refused", job.job_id, job.kind)
            return queue.failed(job, str(error), again=False)
        except Exception as error:
            said = isinstance(error, QinjingError)
            reason = str(error) if said else f"a failure of ours: {type(error).__name__}"
            # Never a traceback: values of DICOM elements stand in messages of libraries.
            LOG.error("job %d, %s, attempt %d: %s", job.job_id, job.kind, job.attempts, reason)
            return queue.failed(job, reason)
        if not queue.done(job, result):
            return "lost"
        (_out(catalogue, job) / _WAITING).unlink(missing_ok=True)
        return "done"


@contextmanager
def _held(job: Job, queue: Queue, lease_s: float) -> Iterator[None]:
    """Renew a job's lease while the block runs."""
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(lease_s / 3):
            try:
                if not queue.hold(job, lease_s):
                    return
            except ConfigError:  # the database is away: the lease may yet be renewed in time
                continue

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def deidentified(job: Job, catalogue: Catalogue, config: WorkConfig) -> Mapping[str, Any]:
    """Write a study's copy without its patient, and send it on."""
    from qinjing.data.dicom.deidentify_files import deidentify_files

    def make(out: Path) -> _Made:
        place = catalogue.place(job.study_instance_uid)
        made = deidentify_files(place, out, config.keep, secret=config.secret or b"")
        if made.refused and not made.written:
            rule = "of sound DICOM files"
            raise InputError("study", rule, f"{len(made.refused)} that are not")
        result = {"written": made.written, "refused": len(made.refused),
                  "warnings": sorted(made.warnings)}  # fmt: skip
        return sorted(out.rglob("*.dcm")), result

    return _sent(job, catalogue, config, make)


def shown(job: Job, catalogue: Catalogue, config: WorkConfig) -> Mapping[str, Any]:
    """Make the volumes of a study images that the page can show."""
    from qinjing.serve.volumes import show

    images, faults = show(catalogue.place(job.study_instance_uid), catalogue.images)
    if not images:
        raise InputError("study", "of at least one volume", faults[0] if faults else "none")
    return {"images": [image.image_id for image in images], "refused": len(faults)}


def predicted(job: Job, catalogue: Catalogue, config: WorkConfig) -> Mapping[str, Any]:
    """Segment a study, and send what each model's class may say of it."""

    def make(out: Path) -> _Made:
        from qinjing.serve.answer import answer
        from qinjing.serve.volumes import show

        study = catalogue.place(job.study_instance_uid)
        show(study, catalogue.images)
        made: list[Path] = []
        faults: list[str] = []
        for number, model in enumerate(config.models, start=1):
            answers, refused = answer(study, model, out / f"{number:02d}")
            faults += refused  # a study is of one modality mostly: it fits some models
            for one in answers:
                image = catalogue.images.find(one.about)
                if image is not None:
                    catalogue.images.add_segmentation(
                        image.image_id, kind="model", author=model.name, labels=model.labels()[0],
                        product_class=model.product_class, content=one.segmentation.read_bytes(),
                        confidence=one.confidence, maker=one.maker,
                    )  # fmt: skip
                made += one.files
        if faults and not made:
            raise InputError("study", "of series that can be segmented", faults[0])
        return made, {"made": [file.name for file in made], "refused": faults}

    return _sent(job, catalogue, config, make)


def released(job: Job, catalogue: Catalogue, config: WorkConfig) -> Mapping[str, Any]:
    """Send what waited for a named reader, and was confirmed."""

    def make(out: Path) -> _Made:
        from qinjing.report.product_class import must_be_confirmed
        from qinjing.serve.answer import confirmed_answer

        models = {model.name: model for model in config.models}
        place = catalogue.place(job.study_instance_uid)
        made: list[Path] = []
        for image in catalogue.images.of_study(job.study_instance_uid):
            for one in catalogue.images.segmentations(image.image_id, "model"):
                if not (one.confirmed_by and must_be_confirmed(one.product_class)):
                    continue
                if one.author not in models:
                    raise ConfigError("--model", "the one that was confirmed", "others")
                made += confirmed_answer(
                    place, models[one.author], image, one, catalogue.images.mask(one),
                    out / one.segmentation_id,
                )  # fmt: skip
        return made, {"made": [file.name for file in made]}

    return _sent(job, catalogue, config, make)


def _sent(
    job: Job, catalogue: Catalogue, config: WorkConfig, make: Callable[[Path], _Made]
) -> Mapping[str, Any]:
    """Make what a job makes, unless an attempt before this one did, and send it."""
    out = _out(catalogue, job)
    made = _made_before(out, by := _by(job, config))
    if made is None:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True, mode=0o700)
        made = make(out)
        names = [str(file.relative_to(out)) for file in made[0]]
        write_json(out / _WAITING, {"by": by, "files": names, "result": made[1]})
    files, result = made
    try:
        sent = send(files, config.destination) if config.destination and files else 0
    except PassingError:
        raise
    except Exception:  # what was not taken may be made better the next time
        (out / _WAITING).unlink(missing_ok=True)
        raise
    return {**result, "sent": sent}


def _by(job: Job, config: WorkConfig) -> str:
    """A digest of all that decides what is made of a study: another makes it anew."""
    from qinjing import __version__
    from qinjing.export.dicom import maker_of

    parts = [job.revision, sorted(config.keep), config.secret, __version__]
    parts += [(maker_of(model.run).version, model.declared) for model in config.models]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _made_before(out: Path, by: str) -> _Made | None:
    """What an attempt before made in the same way and could not send; None where it did not."""
    try:
        told = json.loads((out / _WAITING).read_bytes())
        files = [out / name for name in told["files"]]
        fits = told["by"] == by and all(file.is_file() for file in files)
        return (files, told["result"]) if fits else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def made_at(catalogue: Catalogue, study_instance_uid: str, kind: str) -> Path:
    """Return the folder of what a job of this kind makes of a study."""
    name = catalogue.place(study_instance_uid).name
    return catalogue.folder / "made" / name[:2] / name / kind


def _out(catalogue: Catalogue, job: Job) -> Path:
    return made_at(catalogue, job.study_instance_uid, job.kind)


KINDS: dict[str, Callable[[Job, Catalogue, WorkConfig], Mapping[str, Any]]] = {
    "deidentify": deidentified,
    "show": shown,
    "predict": predicted,
    "release": released,
}

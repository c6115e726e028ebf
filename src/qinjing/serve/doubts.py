"""How unsure the served models are of images, so that what teaches most is labelled first.

A model looks at images while somebody has time for it; what it found is kept while the service
runs, and orders what is labelled next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from qinjing.data.case import Case
from qinjing.errors import InputError
from qinjing.report.declared import ServedModel
from qinjing.serve.drawn import Image
from qinjing.serve.images import Images

LOOKING_S = 20.0  # for how long a model looks at more images in one go


@dataclass
class Doubts:
    """What is known of it.

    Attributes:
        models: that are served; the first that fits an image is asked.
        images: where they lie.
    """

    models: Sequence[ServedModel]
    images: Images
    _known: dict[tuple[str, str], float] = field(default_factory=dict)

    def of(self, image: Image) -> float | None:
        """Return the mean entropy of what the image's model says; None where nobody looked."""
        model = self._model(image)
        return self._known.get((model.name, image.image_id)) if model else None

    def look(self, among: Sequence[Image]) -> None:
        """Let the models look at more of these, no longer than `LOOKING_S` and one image."""
        start = time.monotonic()
        fitting = [(model, image) for image in among if (model := self._model(image))]
        # Model by model: one network is in memory.
        for model, image in sorted(fitting, key=lambda pair: self.models.index(pair[0])):
            if (model.name, image.image_id) in self._known:
                continue
            if time.monotonic() - start > LOOKING_S:
                return
            try:
                case = Case(image.image_id, "", (self.images.volume(image.image_id),))
                doubt = float(_doubter(model.run)(case)[0])
            except InputError:  # it fits the model in name alone
                doubt = -1.0
            self._known[model.name, image.image_id] = doubt

    def first(self, among: Sequence[Image]) -> str | None:
        """Return the id of what is to be labelled first; where nobody looked, of the first."""
        known = [(one.image_id, self.of(one)) for one in among]
        found = max(known, key=lambda one: -1.0 if one[1] is None else one[1], default=(None,))
        return found[0]

    def _model(self, image: Image) -> ServedModel | None:
        fitting = (m for m in self.models if image.modality in ("", m.declared.modality))
        return next(fitting, None)


@lru_cache(maxsize=1)
def _doubter(run: Path) -> Callable[[Case], np.ndarray]:
    from qinjing.tasks.select import doubter

    return doubter(run)

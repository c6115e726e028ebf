"""The smooth shading that a receive coil leaves on MR images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qinjing.data.transforms.transform import change_rows, interval, probability
from qinjing.errors import ConfigError


@dataclass(frozen=True)
class BiasFieldParameters:
    """Per sample: whether, bool `(B,)`, and the polynomial's coefficients `(B, n, n, n)`."""

    applied: np.ndarray
    coefficients: np.ndarray


@dataclass(frozen=True)
class BiasField:
    """Multiply by the exponential of a smooth polynomial over the patch.

    The polynomial is a sum of products of Legendre polynomials of D, H and W, each from −1 to
    1 across the patch, of total degree up to `degree`. Intensities are counted from each
    channel's minimum, so that normalised images, which have negative values, are shaded too.

    Args:
        coefficient: range of each coefficient, drawn uniformly.
        degree: total degree, 1 to 8.
        probability: for each sample.

    Raises:
        ConfigError: a range, degree or probability that cannot be.

    Source: Van Leemput 1999, doi:10.1109/42.811268; MONAI's `RandBiasField`, without its
    constant term, which is a change of brightness.
    """

    coefficient: tuple[float, float] = (-0.2, 0.2)
    degree: int = 3
    probability: float = 0.15

    def __post_init__(self) -> None:
        limits = interval("coefficient", self.coefficient, low=-10.0, high=10.0)
        object.__setattr__(self, "coefficient", limits)
        object.__setattr__(self, "probability", probability("probability", self.probability))
        if type(self.degree) is not int or not 1 <= self.degree <= 8:
            raise ConfigError("degree", "an integer from 1 to 8", self.degree)

    def draw(self, rng: np.random.Generator, batch: int) -> BiasFieldParameters:
        """Draw whether, and every coefficient up to the degree."""
        size = self.degree + 1
        total = np.indices((size,) * 3).sum(0)
        kept = (total >= 1) & (total <= self.degree)
        return BiasFieldParameters(
            applied=rng.random(batch) < self.probability,
            coefficients=rng.uniform(*self.coefficient, (batch, size, size, size)) * kept,
        )

    def apply(
        self, image: Tensor, label: Tensor, parameters: BiasFieldParameters
    ) -> tuple[Tensor, Tensor]:
        """Shade the drawn samples; the label stays."""

        def shade(x: Tensor, rows: np.ndarray) -> Tensor:
            field = torch.from_numpy(parameters.coefficients[rows]).to(x)
            for length in x.shape[2:]:
                at = np.linspace(-1.0, 1.0, length) if length > 1 else np.zeros(1)
                basis = torch.from_numpy(np.polynomial.legendre.legvander(at, self.degree)).to(x)
                # Each turn eats the first axis of coefficients and adds one of voxels at the end.
                field = torch.tensordot(field, basis, ([1], [1]))
            low = x.amin((2, 3, 4), keepdim=True)
            return (x - low).mul_(field.exp_()[:, None]).add_(low)

        return change_rows(image, parameters.applied, shade), label

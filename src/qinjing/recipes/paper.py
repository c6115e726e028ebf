"""The preprocessing list of the paper that Qinjing implements."""

from __future__ import annotations

from qinjing.recipes.recipe import Recipe


def paper_preprocessing() -> Recipe:
    """Return the paper's list as it was meant to run.

    The paper writes, for MONAI::

        Spacingd(pixdim=(1.5, 1.5, 5.0)),
        RandAdjustContrastd(gamma=(0.8, 1.2)),
        RandGaussianNoised(std=(0, 0.01)),
        RandRotated(range_x=15, prob=0.5),

    Four things there have to be read, not copied:

    - MONAI's axes are (x, y, z), ours (D, H, W): the spacing becomes (5.0, 1.5, 1.5) mm, and
      a turn about x is a turn about W.
    - `range_x` is in radians, where 15 is more than two turns. The paper means degrees.
    - `std` takes one number in MONAI, and is drawn from 0 to it. The pair means this range. It
      is in the unit of the image after the plan's normalisation.
    - Contrast and noise have no probability: MONAI's default, 0.1 for each sample.

    As in MONAI, the turn is one of voxels, whatever their spacing; labels are resampled as
    labels, where the list, naming no mode, would interpolate their numbers.

    Source: the project's paper, section 4.2.
    """
    return Recipe(
        name="paper",
        spacing_mm=(5.0, 1.5, 1.5),
        augmentation=(
            {"name": "gamma", "options": {"gamma": [0.8, 1.2], "probability": 0.1}},
            {"name": "noise", "options": {"std": [0.0, 0.01], "probability": 0.1}},
            {
                "name": "affine",
                "options": {
                    "rotation_deg": [[0.0, 0.0], [0.0, 0.0], [-15.0, 15.0]],
                    "rotation_probability": 0.5,
                    "scale": [1.0, 1.0],
                    "scale_probability": 0.0,
                },
            },
        ),
        source="the project's paper, section 4.2",
    )

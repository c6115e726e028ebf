"""What the literature does with four public sets, where it differs from what the plan would.

`LAYOUTS` opens the sets as they are unpacked. Networks, patches and budgets stay with the plan: the
published ones are for GPUs.
"""

from __future__ import annotations

from qinjing.recipes.recipe import Recipe


def brats2023() -> Recipe:
    """Return BraTS at its own 1 mm, with the augmentation of the 2021 validation phase's winner.

    All scans were resampled to 1 mm by the organisers: another grid would only interpolate twice.
    The augmentation zooms in and never out, turns nothing, and mirrors all three axes, for a tumour
    knows no side. It applies contrast as `x · factor`, kept within the old range; ours stretches
    about the mean, which after the plan's normalisation is near 0.

    Source: arXiv:2110.03352 (Optimized U-Net), data augmentation.
    """
    chance = 0.15  # of each but mirroring
    still = [[0.0, 0.0]] * 3
    zoom = {"rotation_deg": still, "rotation_probability": 0.0, "scale": [1.0, 1.4],
            "scale_probability": chance}  # fmt: skip
    return Recipe(
        name="brats2023",
        source="arXiv:2110.03352, data augmentation",
        spacing_mm=(1.0, 1.0, 1.0),
        augmentation=(
            {"name": "affine", "options": zoom},
            {"name": "flip", "options": {"axes": [0, 1, 2], "probability": 0.5}},
            {"name": "noise", "options": {"std": [0.0, 0.33], "probability": chance}},
            {"name": "blur", "options": {"sigma": [0.5, 1.5], "probability": chance}},
            {"name": "brightness", "options": {"factor": [0.7, 1.3], "probability": chance}},
            {"name": "contrast", "options": {"factor": [0.65, 1.5], "probability": chance}},
        ),
    )


def lits() -> Recipe:
    """Return LiTS on nnU-Net's grid, the median of its 131 training scans.

    Slices are 0.45 to 6 mm apart: a fixed grid makes figures from a part of the set, whose median
    is another, comparable with those of the whole. The augmentation is nnU-Net's, the plan's own.

    Source: doi:10.1038/s41592-020-01008-z (nnU-Net), supplement, Liver (D3, the same scans).
    """
    return Recipe(
        name="lits",
        source="doi:10.1038/s41592-020-01008-z, supplement, D3",
        spacing_mm=(1.0, 0.76757812, 0.76757812),
    )


def msd_pancreas() -> Recipe:
    """Return MSD Pancreas on nnU-Net's grid, the median of its 281 training scans.

    Slices of 2.5 mm stay what they are: finer ones would be made up. The augmentation is nnU-Net's,
    the plan's own.

    Source: doi:10.1038/s41592-020-01008-z (nnU-Net), supplement, Pancreas (D7).
    """
    return Recipe(
        name="msd_pancreas",
        source="doi:10.1038/s41592-020-01008-z, supplement, D7",
        spacing_mm=(2.5, 0.80273402, 0.80273402),
    )


def nih_pancreas() -> Recipe:
    """Return NIH Pancreas-CT at 1 mm, on which its published figures are mostly measured.

    Most slices are 1 mm apart and voxels 0.66 to 0.98 mm wide, so that 1 mm loses little. Attention
    U-Net took 2 mm (arXiv:1804.03999), an eighth of the voxels, and says why: memory. The
    augmentation is left to the plan.

    Source: doi:10.1016/j.media.2022.102530 (MC-Net+), data sets.
    """
    return Recipe(
        name="nih_pancreas",
        source="doi:10.1016/j.media.2022.102530, data sets",
        spacing_mm=(1.0, 1.0, 1.0),
    )

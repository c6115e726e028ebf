from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    """Four samples of two channels, textured, with three labels in blobs that touch."""
    rng = np.random.default_rng(7)
    shape = (14, 18, 16)
    image = rng.normal(size=(4, 2, *shape)).astype(np.float32)
    d, h, w = np.indices(shape)
    label = np.where((d - 7) ** 2 + (h - 8) ** 2 + (w - 8) ** 2 < 30, 1 + (h > 8), 0)
    return torch.from_numpy(image), torch.from_numpy(np.stack([label] * 4).astype(np.uint8))

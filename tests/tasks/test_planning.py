"""What a user overrides in a plan, and what follows from it."""

from __future__ import annotations

import pytest
from tests.engine.test_plan import fingerprint

from qinjing.tasks import planning
from qinjing.tasks.planning import Overrides, choices, decide


def test_the_rate_follows_the_widths_that_a_user_asks_for() -> None:
    made = decide(
        fingerprint((36, 50, 35), [(1.0, 1.0, 1.0)]),
        Overrides(net_options={"widths": (64, 128, 512)}),
    )
    assert made.fit.learning_rate == 1e-3


def test_full_resolution_is_timed_where_there_may_be_time_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(planning, "default_device", lambda: "cpu")

    def nets(overrides: Overrides, budget_s: float) -> list[str | None]:
        return [choice.net for choice in choices(overrides, budget_s)]

    assert nets(Overrides(), 20) == ["subvoxel_unet"]
    assert nets(Overrides(), 3600) == ["residual_unet", "subvoxel_unet"]
    assert nets(Overrides(net="unet"), 3600) == ["unet"]
    assert nets(Overrides(steps=100), 3600) == ["subvoxel_unet"]

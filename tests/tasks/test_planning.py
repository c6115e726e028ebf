"""What a user overrides in a plan, and what follows from it."""

from __future__ import annotations

from tests.engine.test_plan import fingerprint

from qinjing.tasks.planning import Overrides, decide


def test_the_rate_follows_the_widths_that_a_user_asks_for() -> None:
    made = decide(
        fingerprint((36, 50, 35), [(1.0, 1.0, 1.0)]),
        Overrides(net_options={"widths": (64, 128, 512)}),
        "subvoxel_unet",
    )
    assert made.fit.learning_rate == 1e-3

"""A way of running whose gradient is wrong is not chosen."""

from __future__ import annotations

import pytest
import torch
from tests.engine.test_fit import Balls
from torch import Tensor

from qinjing.engine.device import Execution
from qinjing.engine.trial import gradient_fault


class Rounded(Balls):
    """A step that goes wrong in lower precision, by so much of one weight's gradient."""

    def __init__(self, wrong: float) -> None:
        super().__init__()
        self.wrong = wrong

    def loss(self, inputs: Tensor, targets: Tensor, share: float) -> Tensor:
        loss = super().loss(inputs, targets, share)
        if torch.is_autocast_enabled("cpu"):
            loss = loss + self.wrong * self.net.get_parameter("encoders.0.0.0.weight").sum()
        return loss


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_sound_step_agrees_in_both_precisions(channels_last: bool) -> None:
    for precision in ("fp32", "bf16"):
        assert gradient_fault(Balls(), Execution("cpu", precision, channels_last)) is None


@pytest.mark.parametrize("wrong", [1e3, float("nan")])
def test_a_wrong_gradient_is_named(wrong: float) -> None:
    task = Rounded(wrong)
    before = {name: value.clone() for name, value in task.net.state_dict().items()}
    fault = gradient_fault(task, Execution("cpu", "bf16"))
    assert fault is not None
    assert "encoders.0.0.0.weight in bf16" in fault
    assert gradient_fault(task, Execution("cpu", "fp32")) is None
    assert all(torch.equal(before[name], value) for name, value in task.net.state_dict().items())
    assert all(parameter.grad is None for parameter in task.net.parameters())

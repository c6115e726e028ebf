"""Try a way of running before it is chosen: is a step's gradient right?"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from qinjing.engine.device import Execution
from qinjing.engine.task import Task

_COUNTS = 1e-3  # share of the whole gradient's length from which a weight's part is looked at
_MOST = 1.0  # of a part's own length: float32 and bfloat16 lie a few hundredths apart


def gradient_fault(task: Task, execution: Execution) -> str | None:
    """Say how a step's gradient in lower precision differs from float32's, or None if it agrees.

    In oneDNN the bfloat16 weight gradient of a convolution over two slices reads memory that
    nothing was written to (torch 2.13, docs/notes/0010); there may be more of the kind.

    Args:
        task: its net's weights are left as they are, its gradients cleared.
        execution: the way of running to check.
    """
    if execution.precision == "fp32":
        return None
    exact = _gradient(task, replace(execution, precision="fp32"))
    whole = sum(float(part.square().sum()) for part in exact.values()) ** 0.5
    for name, part in _gradient(task, execution).items():
        length = float(exact[name].norm())
        far = float((part - exact[name]).norm())
        if length > _COUNTS * whole and not far <= _MOST * length:
            return (
                f"the gradient of {name} in {execution.precision} is {far / length:.2g} times its "
                "length from float32's"
            )
    return None


def _gradient(task: Task, execution: Execution) -> dict[str, Tensor]:
    net = execution.place(task.net).train()
    net.zero_grad(set_to_none=True)
    inputs, targets = task.batch(0, 0)
    with execution.autocast():
        loss = task.loss(execution.send(inputs), targets.to(execution.device), 0.5)
    loss.backward()
    found = {n: p.grad.float() for n, p in net.named_parameters() if p.grad is not None}
    net.zero_grad(set_to_none=True)
    return found

"""Training in rounds: weights come from elsewhere, some steps are taken, what changed goes out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from qinjing.engine.device import Execution
from qinjing.engine.fit import FitConfig, Progress, learning_rate, one_step, optimiser_for
from qinjing.engine.optimiser import memory_of, remember
from qinjing.engine.task import Task


class Rounds:
    """A network that learns a part of a schedule at a time.

    The optimiser's moments stay from one part to the next, whatever weights come in between.

    Args:
        task: batches and loss; chance is a function of the step, so that a part that is done again
            comes to the same bits.
        config: its `steps` are those of all parts together.
        execution: device, precision and memory format.
        memory: moments, as `memory` returned them.
    """

    def __init__(
        self, task: Task, config: FitConfig, execution: Execution, memory: dict[str, Tensor]
    ) -> None:
        self.task, self.config, self.execution = task, config, execution
        self.net = execution.place(task.net)
        self.recall(memory)

    def learn(
        self, first: int, count: int, correct: Callable[[nn.Module], None] | None = None
    ) -> float:
        """Take steps `first` to `first + count` of the schedule and return their mean loss."""
        self.net.train()
        losses = []
        for step in range(first, first + count):
            progress = Progress(self.config.steps, step=step)
            rate = learning_rate(progress.share(step), self.config)
            losses.append(
                one_step(
                    self.task, self.net, self._optimiser, self.execution, progress, rate,
                    self.config, correct,
                )
            )  # fmt: skip
        return sum(losses) / len(losses)

    def weights(self) -> dict[str, Tensor]:
        """Return a copy of weights and buffers, on the CPU."""
        return {n: value.detach().cpu().clone() for n, value in self.net.state_dict().items()}

    def take(self, weights: dict[str, Tensor]) -> None:
        """Put weights and buffers in, names that are missing left as they are."""
        with torch.no_grad():
            own = self.net.state_dict()
            for name, value in weights.items():
                own[name].copy_(value)

    def recall(self, memory: dict[str, Tensor]) -> None:
        """Begin with these moments, as `memory` returned them, or with none."""
        self._optimiser = optimiser_for(self.net, self.config)
        remember(self._optimiser, memory)

    def memory(self) -> dict[str, Tensor]:
        """Return the optimiser's moments."""
        return memory_of(self._optimiser)

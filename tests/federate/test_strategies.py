"""Rules of learning together, on problems whose answer is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qinjing.engine.device import Execution
from qinjing.engine.fit import FitConfig, fit
from qinjing.engine.rounds import Rounds
from qinjing.federate.strategies import STRATEGIES, State, Strategy, Update, Work
from qinjing.federate.strategies.fedadam import FedAdam
from qinjing.federate.strategies.fedprox import FedProx
from qinjing.federate.strategies.personal import Ditto, Personal
from qinjing.federate.strategies.scaffold import Scaffold
from qinjing.federate.strategies.strategy import shrink, weighted_mean

PLAIN = FitConfig(400, learning_rate=0.05, weight_decay=0.0, clip_norm=1e9)


class Regression:
    """Least squares on one site's rows; every batch is all of them."""

    def __init__(self, rows: Tensor, wanted: Tensor, net: nn.Module | None = None) -> None:
        torch.manual_seed(0)
        self.net = net or nn.Linear(rows.shape[1], 1, bias=False)
        self.rows, self.wanted = rows, wanted

    def batch(self, step: int, rank: int) -> tuple[Tensor, Tensor]:
        return self.rows, self.wanted

    def loss(self, inputs: Tensor, targets: Tensor, share: float) -> Tensor:
        return (self.net(inputs) - targets).square().mean()

    def validate(self, net: nn.Module) -> dict[str, float]:
        return {"score": 0.0}

    def follow(self, average: Mapping[str, Tensor]) -> None: ...


def sites(count: int = 3) -> list[Regression]:
    """Sites that disagree: other rows, another truth, another number of cases."""
    generator = torch.Generator().manual_seed(3)
    made = []
    for number in range(count):
        rows = torch.randn(10 * (number + 1), 4, generator=generator)
        rows = rows * torch.tensor([1.0, 3.0, 0.3, 1.0]).roll(number)
        truth = torch.randn(4, 1, generator=generator)
        made.append(Regression(rows, rows @ truth))
    return made


def together(
    strategy: Strategy, tasks: list[Regression], rounds: int, count: int, config: FitConfig = PLAIN
) -> tuple[State, list[State]]:
    """Run a federation without a coordinator; the state and what each site keeps."""
    config = replace(config, steps=rounds * count)
    held = [Rounds(task, config, Execution(), {}) for task in tasks]
    kept: list[State] = [{} for _ in tasks]
    state = strategy.open(held[0].weights())
    for number in range(rounds):
        sent = strategy.send(state)
        updates = []
        for site, own, task in zip(held, kept, tasks, strict=True):
            work = Work(site, number * count, count, own)
            updates.append(Update(strategy.learn(work, sent), len(task.rows)))
        state = strategy.merge(state, updates, 1.0)
    return state, kept


def pooled_answer(tasks: list[Regression]) -> np.ndarray:
    rows = torch.cat([task.rows for task in tasks]).double().numpy()
    wanted = torch.cat([task.wanted for task in tasks]).double().numpy()
    return np.linalg.lstsq(rows, wanted, rcond=None)[0].ravel()


def far(state: State, tasks: list[Regression]) -> float:
    return float(np.abs(state["weights"]["weight"].numpy().ravel() - pooled_answer(tasks)).max())


def test_one_site_learns_as_it_would_alone(tmp_path: Path) -> None:
    (task,) = sites(1)
    config = replace(PLAIN, steps=30, ema_decay=0.0)
    alone = fit(task, config, Execution(), tmp_path).weights
    state, _ = together(Strategy(), sites(1), 6, 5, config)
    torch.testing.assert_close(state["weights"]["weight"], alone["weight"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", list(STRATEGIES))
def test_every_rule_lowers_the_loss_of_all(name: str) -> None:
    tasks = sites()
    strategy = STRATEGIES[name]()
    before = Strategy().open(Rounds(tasks[0], PLAIN, Execution(), {}).weights())
    state, kept = together(strategy, tasks, 30, 5)

    def loss(serve: Mapping[str, Tensor] | None) -> float:
        total = 0.0
        for task, own in zip(tasks, kept, strict=True):
            weights = serve or strategy.serves(strategy.send(state), own)
            task.net.load_state_dict(dict(weights))
            total += task.loss(task.rows, task.wanted, 0.0).item() * len(task.rows)
        return total

    assert loss(None) < 0.8 * loss(before["weights"])


def test_scaffold_finds_the_answer_of_all_where_averaging_drifts() -> None:
    tasks = sites()
    drifted, _ = together(Strategy(), sites(), 40, 10)
    right, _ = together(Scaffold(), tasks, 40, 10)
    assert far(right, tasks) < 0.5 * far(drifted, tasks)


def test_scaffolds_control_is_the_mean_of_the_sites() -> None:
    tasks = sites()
    state, kept = together(Scaffold(), tasks, 3, 2)
    n = torch.tensor([len(task.rows) for task in tasks], dtype=torch.float32)
    own = torch.stack([one["control"]["weight"] for one in kept])
    mean = (own * (n / n.sum()).view(-1, 1, 1)).sum(0)
    torch.testing.assert_close(state["control"]["weight"], mean, rtol=1e-5, atol=1e-6)


def test_scaffold_counts_who_answered_for_their_share_only() -> None:
    strategy = Scaffold()
    state = strategy.open({"w": torch.zeros(2)})
    update = Update({"change": {"w": torch.ones(2)}, "control": {"w": torch.full((2,), 4.0)}}, 3)
    merged = strategy.merge(state, [update], 0.25)
    assert merged["control"]["w"].tolist() == [1.0, 1.0]
    assert merged["weights"]["w"].tolist() == [1.0, 1.0]


def test_fedprox_stays_nearer_to_what_was_sent() -> None:
    lengths = []
    for mu in (0.0, 10.0, 1000.0):
        work = Work(Rounds(sites()[0], PLAIN, Execution(), {}), 0, 20)
        strategy = FedProx(mu=mu)
        sent = strategy.send(strategy.open(work.rounds.weights()))
        lengths.append(float(strategy.learn(work, sent)["change"]["weight"].norm()))
    assert lengths[0] > 1.5 * lengths[1] > 1.5 * 1.5 * lengths[2]


def test_fedadam_by_hand() -> None:
    """Algorithm 2 of arXiv:2003.00295, one coordinate, two rounds, no correction of bias."""
    strategy = FedAdam(rate=0.1, betas=(0.9, 0.99), epsilon=0.001)
    state = strategy.open({"w": torch.tensor([1.0])})
    x, m, v = 1.0, 0.0, 0.001**2
    for change in (0.5, -0.2):
        state = strategy.merge(state, [Update({"change": {"w": torch.tensor([change])}}, 1)], 1.0)
        m = 0.9 * m + 0.1 * change
        v = 0.99 * v + 0.01 * change**2
        x += 0.1 * m / (v**0.5 + 0.001)
    assert state["weights"]["w"].item() == pytest.approx(x, rel=1e-5)


def test_the_weighted_mean_by_hand_and_in_another_order() -> None:
    changes = [{"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([5.0, -2.0])}]
    found = weighted_mean(changes, [3, 1])["w"]
    assert found.tolist() == [2.0, 1.0]
    many = [{"w": torch.randn(1000, generator=torch.Generator().manual_seed(i))} for i in range(9)]
    cases = list(range(1, 10))
    turned = weighted_mean(many[::-1], cases[::-1])["w"]
    torch.testing.assert_close(weighted_mean(many, cases)["w"], turned, rtol=0, atol=1e-7)


def test_the_length_of_all_weights_is_what_is_regularised() -> None:
    net = nn.Linear(3, 2)
    penalty = sum(p.square().sum() for p in net.parameters()) ** 0.5
    wanted = torch.autograd.grad(0.7 * penalty, list(net.parameters()))
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    shrink(net, 0.7)
    for p, right in zip(net.parameters(), wanted, strict=True):
        torch.testing.assert_close(p.grad, right)


def test_normalisations_stay_at_home() -> None:
    def net() -> nn.Module:
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 1))

    tasks = [Regression(task.rows, task.wanted, net()) for task in sites(2)]
    strategy = Personal()
    state, kept = together(strategy, tasks, 3, 2)
    names = {"1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert set(kept[0]["personal"]) == names
    fresh = net().state_dict()
    for name in names:  # nobody else's statistics came in
        assert torch.equal(state["weights"][name], fresh[name])
        served = strategy.serves(strategy.send(state), kept[0])
        assert torch.equal(served[name], kept[0]["personal"][name])
    assert not torch.equal(kept[0]["personal"]["1.weight"], kept[1]["personal"]["1.weight"])
    assert not torch.equal(state["weights"]["0.weight"], fresh["0.weight"])


def test_ditto_gives_each_site_a_better_model_and_the_common_one_no_other() -> None:
    tasks = sites()
    state, kept = together(Ditto(mu=0.01), tasks, 30, 5)
    plain, _ = together(Strategy(), sites(), 30, 5)
    torch.testing.assert_close(state["weights"]["weight"], plain["weights"]["weight"])
    for task, own in zip(tasks, kept, strict=True):
        losses = []
        for weights in (own["own"], state["weights"]):
            task.net.load_state_dict(weights)
            losses.append(task.loss(task.rows, task.wanted, 0.0).item())
        assert losses[0] < 0.5 * losses[1]

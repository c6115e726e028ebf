"""What a GPU changes: every net, loss and loop gives there what it gives on a CPU.

    python -m pytest tests/gpu

needs what Qinjing itself depends on, nibabel and SciPy among it, with a torch that has CUDA, and
pytest. Networks of MONAI and losses that Numba compiles are skipped where these are missing.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.engine.test_fit import Balls
from tests.nets.test_nets import tiny
from tests.tasks.test_train import write_case

from qinjing.config import read_config, read_json
from qinjing.data import cache
from qinjing.data.layouts import open_dataset
from qinjing.engine.device import Execution
from qinjing.engine.fit import FitConfig, fit
from qinjing.engine.log import read_events
from qinjing.engine.muon import orthogonal
from qinjing.engine.plan import Plan
from qinjing.engine.trial import gradient_fault
from qinjing.losses import LOSSES
from qinjing.nets import NETS
from qinjing.tasks.planning import Overrides
from qinjing.tasks.predict import predict_folder
from qinjing.tasks.pretrain import PretrainConfig, pretrain
from qinjing.tasks.segment import SegmentTask
from qinjing.tasks.train import TrainConfig, train

# What some losses import where they are used.
NEEDED = {"shape": "numba", "topology": "numba", "betti_matching": "numba", "distance": "scipy"}
HELD_OUT = 10_000  # the step whose batch validates
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@pytest.fixture(autouse=True)
def _exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products in float32, as a CPU makes them."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("name", NETS)
def test_a_net_gives_the_logits_and_gradients_of_a_cpu(name: str) -> None:
    image = torch.randn(2, 1, 8, 16, 16, generator=torch.Generator().manual_seed(1))
    found = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        net = NETS[name](**tiny(name)).to(device).train()
        outputs = net(image.to(device))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        sum(output.square().mean() for output in outputs).backward()
        gradients = {n: p.grad.cpu() for n, p in net.named_parameters() if p.grad is not None}
        found.append((outputs[0].detach().cpu(), gradients))
    (logits, gradients), (theirs, others) = found
    torch.testing.assert_close(theirs, logits, rtol=1e-3, atol=1e-4)
    length = max(float(g.norm()) for g in gradients.values())
    for parameter, gradient in gradients.items():
        far = float((others[parameter] - gradient).norm())
        assert far < 1e-2 * float(gradient.norm()) + 1e-4 * length, parameter


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_gives_the_value_and_gradient_of_a_cpu(name: str) -> None:
    if name in NEEDED:
        pytest.importorskip(NEEDED[name])
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 3, 6, 8, 8, generator=generator)
    target = torch.randint(0, 3, (2, 6, 8, 8), generator=generator)
    found = []
    for device in ("cpu", "cuda"):
        given = logits.clone().to(device).requires_grad_()
        value = LOSSES[name]()(given, target.to(device))
        value.backward()
        found.append((value.detach().cpu(), given.grad.cpu()))  # type: ignore[union-attr]
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_a_stopped_run_goes_on_where_it_stood(
    tmp_path: Path, optimiser: str, precision: str, channels_last: bool
) -> None:
    config = FitConfig(steps=40, optimiser=optimiser, validations=4, checkpoint_s=0.0)  # type: ignore[arg-type]
    execution = Execution("cuda", precision, channels_last)  # type: ignore[arg-type]
    whole = fit(OnGpu(), config, execution, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(OnGpu(20), config, execution, tmp_path / "cut")
    task = OnGpu()
    resumed = fit(task, config, execution, tmp_path / "cut", resume=True)
    assert task.asked == list(range(20, 40))
    told = [
        [(event["kind"], event["step"]) for event in read_events(tmp_path / name / "log.jsonl")]
        for name in ("whole", "cut")
    ]
    assert told[0] == told[1]
    # Sums on a GPU come in no fixed order, so that bits may differ.
    assert resumed.score == pytest.approx(whole.score, abs=0.02)
    assert all(value.is_cuda for value in resumed.weights.values())


class OnGpu(Balls):
    """`Balls` whose validation looks where the network is, and that counts its batches."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__(stop_at)
        self.asked: list[int] = []

    def batch(self, step: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        if step != HELD_OUT:
            self.asked.append(step)
        return super().batch(step, rank)

    def validate(self, net: torch.nn.Module) -> dict[str, float]:
        image, label = self.batch(HELD_OUT, 0)
        with torch.no_grad():
            right = net(image.cuda()).argmax(1).cpu() == label
        return {"score": float(right.float().mean())}


def test_orthogonal_updates_agree_with_a_cpus() -> None:
    matrix = torch.randn(48, 200, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        orthogonal(matrix.cuda()).cpu(), orthogonal(matrix), atol=1e-3, rtol=0
    )


def test_gradients_in_bfloat16_agree_with_float32s(task: SegmentTask) -> None:
    assert gradient_fault(task, Execution("cuda", "bf16", True)) is None


def test_a_wrong_gradient_in_bfloat16_is_reported(
    task: SegmentTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = task.net.get_submodule("head")
    right = head.forward

    def wrong(x: torch.Tensor) -> torch.Tensor:
        return -4 * right(x) if torch.is_autocast_enabled("cuda") else right(x)

    monkeypatch.setattr(head, "forward", wrong)
    fault = gradient_fault(task, Execution("cuda", "bf16", True))
    assert fault is not None and "in bf16 is" in fault
    assert gradient_fault(task, Execution("cuda", "fp32", True)) is None


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    for number in range(6):
        write_case(folder, f"case{number}", number)
    return folder


@pytest.fixture(scope="module")
def run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Planned, probed and trained here."""
    output = tmp_path_factory.mktemp("out") / "run"
    train(TrainConfig(dataset, output, overrides=Overrides(net="residual_unet", steps=150)))
    return output


@pytest.fixture
def task(dataset: Path, run: Path, tmp_path: Path) -> SegmentTask:
    """What the plan trains, untrained, on one case."""
    plan = read_config(run / "plan.json", Plan)
    case = open_dataset(dataset).cases[0]
    cache.prepare([case], tmp_path / "cache", plan.preprocessing, plan.label_values)
    cached = cache.load(tmp_path / "cache", case.case_id)
    torch.manual_seed(0)
    return SegmentTask(plan.model.build(), plan, [cached], [cached], 0)


def test_planned_and_trained_here_it_finds_what_it_is_to_find(run: Path) -> None:
    plan = read_config(run / "plan.json", Plan)
    assert plan.execution.device == "cuda"
    assert plan.predicted is not None
    assert read_json(run / "fold_0" / "result.json")["dice"] > 0.7
    measured = read_json(run / "measured.json")
    predicted = plan.predicted.training_memory_gib
    assert 0.3 * predicted < measured["training_memory_gib"] < 3 * predicted


def test_what_a_gpu_trained_predicts_on_a_cpu(
    run: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qinjing.data.nifti import read_nifti

    scan = dataset / "images" / "case0.nii.gz"
    predict_folder(run, scan, tmp_path / "gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    predict_folder(run, scan, tmp_path / "cpu")
    ours, theirs = (read_nifti(tmp_path / d / "case0.nii.gz").voxels for d in ("gpu", "cpu"))
    assert (ours != theirs).mean() < 0.01


def test_a_trunk_is_pre_trained_here(dataset: Path, tmp_path: Path) -> None:
    done = pretrain(PretrainConfig((dataset,), tmp_path / "trunk", steps=20))
    assert done["steps"] == 20
    assert done["measures"]["feature_rank"] > 1

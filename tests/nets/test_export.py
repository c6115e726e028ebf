"""What is exported computes what was trained: torch.export, ONNX Runtime, OpenVINO."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.nets.test_hybrid import five_stages
from tests.nets.test_nets import BASELINES, make

from qinjing.nets import NETS

# torch's own exporter still uses what torch calls outdated.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
SHAPE = (1, 1, 8, 16, 12)
OURS = [name for name in NETS if name not in BASELINES]


def exported(name: str) -> tuple[torch.export.ExportedProgram, torch.Tensor, torch.Tensor]:
    """A net's graph, another image than it was exported with, and what the net says of it."""
    # An untrained hybrid's gates would hide an error of its attention: here they stand half open.
    net = five_stages() if name == "hybrid" else make(name).eval()
    shape = (1, 1, 16, 32, 16) if name == "hybrid" else SHAPE
    image = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return torch.export.export(net, (torch.zeros(shape),)), image, net(image)


def onnx_file(name: str, folder: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    """The net as ONNX, an image, and what the net says of it."""
    pytest.importorskip("onnx", reason="needs the extra qinjing[export]")
    pytest.importorskip("onnxscript", reason="needs the extra qinjing[export]")
    program, image, logits = exported(name)
    made = torch.onnx.export(program, verbose=False, input_names=["image"])
    assert made is not None
    made.save(folder / "net.onnx")
    return folder / "net.onnx", image.numpy(), logits.numpy()


def assert_runs_in_onnxruntime(name: str, folder: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="needs the extra qinjing[export]")
    path, image, logits = onnx_file(name, folder)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": image})
    np.testing.assert_allclose(found, logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", OURS)
def test_torch_export_is_equal(name: str) -> None:
    program, image, logits = exported(name)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(image), logits, rtol=1e-4, atol=1e-4)


def test_the_hybrid_runs_in_onnxruntime(tmp_path: Path) -> None:
    assert_runs_in_onnxruntime("hybrid", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NETS if name != "hybrid"])
def test_onnxruntime_is_equal(name: str, tmp_path: Path) -> None:
    assert_runs_in_onnxruntime(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hybrid", "pyramid"])
def test_openvino_is_equal(name: str, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino", reason="needs the extra qinjing[export]")
    path, image, logits = onnx_file(name, tmp_path)
    model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    np.testing.assert_allclose(model(image)[0], logits, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", BASELINES)
def test_torch_export_of_a_baseline_is_equal(name: str) -> None:
    test_torch_export_is_equal(name)

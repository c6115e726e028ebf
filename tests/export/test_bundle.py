"""Bundles against MONAI itself, and weights against nnU-Net's own network."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tasks.test_train import write_case

from qinjing.config import read_config, read_json, write_json
from qinjing.data.layouts import open_dataset
from qinjing.data.nifti import read_nifti, write_nifti
from qinjing.data.preprocess import Normalisation
from qinjing.engine.checkpoint import ModelCard, load_model, save_model
from qinjing.engine.plan import Plan, make_plan, with_steps
from qinjing.errors import ConfigError, FormatError
from qinjing.export.bundle import _ct, as_plain_conv_weights, readme, workflow, write_bundle
from qinjing.nets.blocks import norm
from qinjing.nets.unet import UNet, plain_conv_names
from qinjing.tasks.planning import measure
from qinjing.tasks.predict import predict_folder
from qinjing.tasks.train import TrainConfig, train
from qinjing.volume import Volume

monai_bundle = pytest.importorskip("monai.bundle")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short training of scans of three spacings, so that there is something to resample."""
    folder = tmp_path_factory.mktemp("set")
    for number in range(6):
        write_case(folder, f"case{number}", number)
        for kind in ("images", "labels"):
            path = folder / kind / f"case{number}.nii.gz"
            volume = read_nifti(path)
            affine = volume.affine @ np.diag([1, 1 + 0.1 * (number % 3), 1, 1])
            write_nifti(path, Volume(volume.voxels, affine))
    opened = open_dataset(folder)
    plan = make_plan(measure(opened, opened.cases), device="cpu", threads=1, net="subvoxel_unet")
    write_json(folder / "plan.json", with_steps(plan, 40, None, 1))
    output = tmp_path_factory.mktemp("run") / "run"
    train(TrainConfig(folder, output, plan=folder / "plan.json"))
    return output


# MONAI warns of every configuration that it runs, and of what it will call otherwise one day.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("scheme", ["zscore", "ct"])
def test_monai_runs_the_bundle_to_the_labels_that_we_predict(
    run: Path, tmp_path: Path, scheme: str
) -> None:
    pytest.importorskip("ignite")
    if scheme == "ct":  # as if these grey values were Hounsfield units
        plan = read_config(run / "plan.json", Plan)
        how = Normalisation("ct", -20.0, 320.0, 60.0, 110.0)
        run = shutil.copytree(run, tmp_path / "as_ct")
        changed = replace(plan.preprocessing, normalisation=(how,))
        write_json(run / "plan.json", replace(plan, preprocessing=changed))
    made = write_bundle(run, tmp_path / "bundle")
    assert "models/model.safetensors" in made["files"] and "qinjing" in made["needs"]
    dataset = Path(read_json(run / "run.json")["dataset"])
    ours = tmp_path / "ours"
    done = predict_folder(run, dataset / "images", ours)
    monai_bundle.run(
        config_file=str(tmp_path / "bundle" / "configs" / "inference.json"),
        bundle_root=str(tmp_path / "bundle"),
        dataset_dir=str(dataset / "images"),
        output_dir=str(tmp_path / "theirs"),
    )
    assert len(done["outputs"]) == 6
    same, total, seen = 0, 0, set()
    for path in sorted(ours.glob("*.nii.gz")):
        mine, other = read_nifti(path), read_nifti(tmp_path / "theirs" / path.name)
        assert np.allclose(mine.affine, other.affine, atol=1e-4)
        same += int((mine.voxels == other.voxels).sum())
        total += mine.voxels.size
        seen |= set(np.unique(mine.voxels).tolist())
    assert len(seen) > 1  # the short training found something
    assert same / total > 0.995  # MONAI's cubic spline is not our cubic


def test_the_metadata_says_what_goes_in_and_out(run: Path, tmp_path: Path) -> None:
    write_bundle(run / "fold_0", tmp_path / "bundle")
    content = read_json(tmp_path / "bundle" / "configs" / "metadata.json")
    form = content["network_data_format"]
    assert form["inputs"]["image"]["num_channels"] == 1
    assert form["outputs"]["pred"]["channel_def"]["0"] == "background"
    parser = monai_bundle.ConfigParser()
    parser.read_config(str(tmp_path / "bundle" / "configs" / "inference.json"))
    parser.read_meta(str(tmp_path / "bundle" / "configs" / "metadata.json"))
    parser["bundle_root"] = str(tmp_path / "bundle")
    net = parser.get_parsed_content("network_def")
    net.load_state_dict(parser.get_parsed_content("weights"))
    own = load_model(run / "fold_0")
    image = torch.randn(1, 1, *form["inputs"]["image"]["spatial_shape"])
    with torch.no_grad():
        assert torch.equal(net.eval()(image), own(image))


def trunk_folder(folder: Path, net: str, **options: Any) -> Path:
    card = ModelCard(net, {"in_channels": 1, "classes": 8, "size": "tiny", **options})
    save_model(folder, card, dict(card.build().state_dict()))
    write_json(folder / "trunk.json", {"saw": [{"dataset": "Hearts", "cases": ["a"]}]})
    return folder


@pytest.mark.parametrize("net", ["segresnet", "swin_unetr"])
def test_monais_own_networks_are_built_by_monai_alone(net: str, tmp_path: Path) -> None:
    folder = trunk_folder(tmp_path / "trunk", net)
    made = write_bundle(folder, tmp_path / "bundle")
    assert made["needs"] == ["safetensors"]
    parser = monai_bundle.ConfigParser()
    parser.read_config(str(tmp_path / "bundle" / "configs" / "inference.json"))
    parser["bundle_root"] = str(tmp_path / "bundle")
    theirs = parser.get_parsed_content("network_def")
    assert type(theirs).__module__.startswith("monai.")
    theirs.load_state_dict(parser.get_parsed_content("weights"))
    image = torch.randn(1, 1, 32, 32, 32)
    with torch.no_grad():
        assert torch.equal(theirs.eval()(image), load_model(folder)(image))
    card = json.loads((tmp_path / "bundle" / "configs" / "trunk.json").read_text())
    assert card["saw"][0]["dataset"] == "Hearts"


def test_the_u_net_in_nnu_nets_own_classes() -> None:
    parts = pytest.importorskip("dynamic_network_architectures.building_blocks")
    encoder = pytest.importorskip(f"{parts.__name__}.plain_conv_encoder").PlainConvEncoder
    decoder = pytest.importorskip(f"{parts.__name__}.unet_decoder").UNetDecoder
    torch.manual_seed(0)
    strides = ((1, 1, 1), (1, 2, 2), (2, 2, 2))
    ours = UNet(2, 3, (8, 16, 32), strides, ((1, 3, 3), (3, 3, 3), (3, 3, 3))).eval()
    down = encoder(
        2, 3, [8, 16, 32], torch.nn.Conv3d, [(1, 3, 3), (3, 3, 3), (3, 3, 3)], strides, 2, False,
        norm, {}, nonlin=torch.nn.ReLU, return_skips=True, pool="max",
    )  # fmt: skip
    up = decoder(down, 3, 2, False, conv_bias=True)
    given = as_plain_conv_weights(ours.state_dict())
    for prefix, part in (("encoder.", down), ("decoder.", up)):
        own = {k.removeprefix(prefix): v for k, v in given.items() if k.startswith(prefix)}
        state = part.state_dict()
        # nnU-Net lists each layer twice, as an attribute and within `all_modules`.
        assert {k for k in own if k not in state} == set()
        part.load_state_dict(own, strict=False)
        left = [k for k in state if k not in own and "all_modules" not in k
                and not k.startswith(("encoder.", "seg_layers.0"))]  # fmt: skip
        assert all(k.endswith("conv.bias") for k in left)
        for k in left:
            part.get_parameter(k).data.zero_()
    image = torch.randn(1, 2, 8, 16, 16)
    with torch.no_grad():
        assert torch.allclose(up(down(image)), ours(image), atol=1e-5)


def test_windows_that_monais_networks_do_not_take(run: Path, tmp_path: Path) -> None:
    """Where Qinjing pads for them, the bundle builds them through Qinjing."""
    folder = tmp_path / "run" / "fold_0"
    options = {"in_channels": 1, "classes": 3, "size": "tiny"}
    card = ModelCard("swin_unetr", options)
    save_model(folder, card, dict(card.build().state_dict()))
    for name in ("plan.json", "dataset.json"):
        write_json(tmp_path / "run" / name, read_json(run / name))
    plan = read_config(run / "plan.json", Plan)
    assert any(n % 32 for n in plan.patch_size)
    write_bundle(folder, tmp_path / "bundle")
    content = read_json(tmp_path / "bundle" / "configs" / "inference.json")
    assert content["network_def"]["_target_"] == "qinjing.nets.baselines.swin_unetr"
    parser = monai_bundle.ConfigParser(content)
    parser["bundle_root"] = str(tmp_path / "bundle")
    net = parser.get_parsed_content("network_def")
    net.load_state_dict(parser.get_parsed_content("weights"))
    with torch.no_grad():
        assert net.eval()(torch.zeros(1, 1, *plan.patch_size)).shape[2:] == plan.patch_size


def test_large_label_values_and_several_channels(run: Path) -> None:
    plan = read_config(run / "plan.json", Plan)
    one = Normalisation()
    plan = replace(
        plan,
        label_values=(0, 2, 300),
        preprocessing=replace(plan.preprocessing, normalisation=(one, one)),
    )
    content = workflow({"_target_": "x"}, plan)
    steps = {step["_target_"]: step for step in content["postprocessing"]["transforms"]}
    assert steps["MapLabelValued"]["target_labels"] == [0, 2, 300]
    assert steps["SaveImaged"]["output_dtype"] == "$numpy.uint16"
    assert "{c:04d}" in content["datalist"]
    assert "NAME_0001.nii.gz" in readme(ModelCard("unet", {}), plan, {})


@pytest.mark.filterwarnings("ignore")
def test_a_folder_without_scans_is_no_success(run: Path, tmp_path: Path) -> None:
    write_bundle(run, tmp_path / "bundle")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="must hold NIfTI files"):
        monai_bundle.run(
            config_file=str(tmp_path / "bundle" / "configs" / "inference.json"),
            bundle_root=str(tmp_path / "bundle"),
            dataset_dir=str(tmp_path / "empty"),
        )


def test_names_of_nnu_net_by_hand() -> None:
    names = plain_conv_names(UNet(1, 2, (4, 8, 16)).state_dict())
    assert len(set(names.values())) == len(names) == len(UNet(1, 2, (4, 8, 16)).state_dict())
    assert names["encoders.0.0.0.weight"] == "encoder.stages.0.0.convs.0.conv.weight"
    assert names["encoders.2.2.1.bias"] == "encoder.stages.2.1.convs.1.norm.bias"
    assert names["ups.1.weight"] == "decoder.transpconvs.0.weight"
    assert names["decoders.0.1.0.weight"] == "decoder.stages.1.convs.1.conv.weight"
    assert names["head.bias"] == "decoder.seg_layers.1.bias"


def test_hounsfield_units_as_training_made_them() -> None:
    how = (Normalisation("ct", -100.0, 300.0, 50.0, 80.0), Normalisation("ct", 0.0, 9.0, 4.0, 2.0))
    image = torch.randn(2, 3, 4, 5) * 300
    parser = monai_bundle.ConfigParser({"imports": ["$import torch"], "step": f"${_ct(how)}"})
    found = parser.get_parsed_content("step")(image)
    for one, channel in zip(how, image, strict=True):
        one.apply(channel)
    assert torch.allclose(found, image, atol=1e-5)


def test_what_is_no_bundle(run: Path, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="a run with a finished fold"):
        write_bundle(tmp_path, tmp_path / "bundle")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    with pytest.raises(ConfigError, match="a new folder"):
        write_bundle(run, tmp_path / "full")
    for fold in ("fold_0", "fold_1"):
        (tmp_path / "two" / fold).mkdir(parents=True)
        (tmp_path / "two" / fold / "weights.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match="name one of them"):
        write_bundle(tmp_path / "two", tmp_path / "bundle")

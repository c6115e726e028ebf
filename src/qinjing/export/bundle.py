"""A trained network or a trunk as a MONAI Bundle; what its weights are called in nnU-Net."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qinjing.config import read_config, read_json, write_json
from qinjing.data.preprocess import Normalisation
from qinjing.engine.checkpoint import ModelCard, load_tensors, save_tensors
from qinjing.engine.plan import Plan
from qinjing.errors import ConfigError, FormatError
from qinjing.nets import NETS
from qinjing.nets.baselines import monai_definition
from qinjing.nets.unet import plain_conv_names
from qinjing.registry import constructor
from qinjing.tasks.predict import label_type
from qinjing.tasks.segment import window_for

MONAI = "1.6.1"  # what the workflow was tried with
_AXES = "SPL"  # to which D, H and W run


def write_bundle(model: Path, output: Path) -> dict[str, Any]:
    """Write a MONAI Bundle: metadata, an inference workflow, the weights, a README.

    The workflow reads, turns, resamples and normalises as training did, predicts in the same
    windows and writes label maps on the scan's own grid. Weights are safetensors, which the
    workflow reads without pickle. Networks that are MONAI's own are built by MONAI alone; for the
    others the bundle wants Qinjing installed. A trunk has no workflow of its own, only a network.
    MONAI's resampling differs from ours by its spline, and where a scan's axes are tilted against
    the patient's its grid starts up to half a voxel elsewhere.

    Args:
        model: a run with one fold, one of a run's folds, or what `pretrain` made.
        output: a new folder.

    Returns:
        "output", "net", "needs" (packages), "files".

    Raises:
        FormatError: `model` holds no network.
        ConfigError: it holds several, or `output` is there already.

    Source: MONAI 1.6, docs/source/mb_specification.rst.
    """
    folder = one_network(model)
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ConfigError("output", "a new folder", "something that is there", where=output)
    card = read_config(folder / "model.json", ModelCard)
    weights, _ = load_tensors(folder / "weights.safetensors")
    is_trunk = (folder / "trunk.json").exists()
    plan = None if is_trunk else read_config(folder.parent / "plan.json", Plan)
    network = monai_definition(card.net, card.options, plan.patch_size if plan else ())
    if network:
        weights = {name.removeprefix("net."): value for name, value in weights.items()}
    else:
        make = constructor(NETS, "net", card.net)
        network = {"_target_": f"{make.__module__}.{make.__name__}", **card.options}
    needs = {"safetensors": "0.5"}
    if network["_target_"].startswith("qinjing."):
        needs["qinjing"] = "0.1"
    if plan:
        needs["pytorch-ignite"] = "0.4.11"
    if plan and plan.one_piece:  # MONAI counts pieces with it
        needs["scikit-image"] = "0.24"
    output.parent.mkdir(parents=True, exist_ok=True)
    # Whole or not at all: a killed command leaves nothing under the name asked for.
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=output.parent) as scratch:
        made = Path(scratch) / "bundle"
        save_tensors(made / "models" / "model.safetensors", weights, {"net": card.net})
        write_json(made / "configs" / "inference.json", workflow(network, plan))
        write_json(made / "configs" / "metadata.json", metadata(folder, card, plan, needs))
        if card.net == "unet":
            write_json(made / "configs" / "nnunet_names.json", plain_conv_names(weights))
        if is_trunk:
            shutil.copyfile(folder / "trunk.json", made / "configs" / "trunk.json")
        (made / "docs").mkdir()
        (made / "docs" / "README.md").write_text(readme(card, plan, needs), encoding="utf-8")
        made.replace(output)
    files = sorted(p.relative_to(output).as_posix() for p in output.rglob("*") if p.is_file())
    return {"output": str(output), "net": card.net, "needs": sorted(needs), "files": files}


def one_network(model: Path) -> Path:
    """Return the folder of the only network in a run, a fold or a trunk.

    Raises:
        FormatError: there is none.
        ConfigError: there are several.
    """
    model = model.resolve()  # "." has no name and no parent
    if (model / "weights.safetensors").is_file():
        if not ((model / "trunk.json").is_file() or (model.parent / "plan.json").is_file()):
            raise FormatError(
                "model", "in a run or a trunk", "neither plan.json nor trunk.json", where=model
            )
        return model
    found = sorted(path.parent for path in model.glob("fold_*/weights.safetensors"))
    if not found:
        raise FormatError(
            "model", "a run with a finished fold, or a trunk", "neither", where=model,
            advice="train one with `qinjing train`",
        )  # fmt: skip
    if len(found) > 1:
        raise ConfigError(
            "model", "one network, for a bundle holds one", f"{len(found)} folds", where=model,
            advice=f"name one of them, such as {found[0]}",
        )  # fmt: skip
    return found[0]


def workflow(network: Mapping[str, Any], plan: Plan | None) -> dict[str, Any]:
    """Return `inference.json`; without a plan the network alone."""
    content: dict[str, Any] = {
        "imports": [
            "$import glob",
            "$import numpy",
            "$import sys",
            "$import torch",
            "$from safetensors.torch import load_file",
        ],
        "bundle_root": ".",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": dict(network),
        "network": "$@network_def.to(@device)",
        "weights": "$load_file(@bundle_root + '/models/model.safetensors')",
        "initialize": ["$@network_def.load_state_dict(@weights)", "$@network_def.eval()"],
    }
    if plan is None:
        return content
    window, channels = window_for(plan), len(plan.preprocessing.normalisation)
    alone = "[{'image': one} for one in sorted(glob.glob(@dataset_dir + '/*.nii*'))]"
    if channels > 1:  # nnU-Net's names, a file for each channel; else files that hold them all
        parts = f"[first.replace('_0000.nii', f'_{{c:04d}}.nii') for c in range({channels})]"
        firsts = "sorted(glob.glob(@dataset_dir + '/*_0000.nii*'))"
        alone = f"[{{'image': {parts}}} for first in {firsts}] or {alone}"
    content["initialize"].append(
        "$@datalist or sys.exit('dataset_dir must hold NIfTI files, got none')"
    )
    return content | {
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/eval'",
        "datalist": f"${alone}",
        "preprocessing": {"_target_": "Compose", "transforms": _before(plan)},
        "dataset": {"_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1},
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": list(window.patch_size),
            "sw_batch_size": 1,
            "overlap": window.overlap,
            "mode": window.blend,
            "sw_device": "@device",
        },
        "postprocessing": {"_target_": "Compose", "transforms": _after(plan)},
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
        },
        "run": ["$@evaluator.run()"],
    }


def _before(plan: Plan) -> list[dict[str, Any]]:
    """Turn, resample and normalise as `data.preprocess` does."""
    image = {"keys": "image"}
    steps: list[dict[str, Any]] = [
        {"_target_": "LoadImaged", **image, "ensure_channel_first": True},
        {"_target_": "Orientationd", **image, "axcodes": _AXES, "labels": None},
        {"_target_": "Spacingd", **image, "pixdim": list(plan.preprocessing.spacing_mm),
         "mode": 3, "padding_mode": "nearest", "scale_extent": False},
    ]  # fmt: skip
    how = plan.preprocessing.normalisation
    if all(one.scheme == "ct" for one in how):
        steps.append({"_target_": "Lambdad", **image, "func": f"${_ct(how)}"})
    elif all(one.scheme == "zscore" for one in how):
        steps.append({"_target_": "NormalizeIntensityd", **image, "channel_wise": True})
    else:
        raise ConfigError("channels", "all CT or none, for a bundle", "both")
    return steps


def _ct(how: tuple[Normalisation, ...]) -> str:
    """An expression that clips and standardises each channel."""

    def column(name: str) -> str:
        return f"torch.tensor({[getattr(one, name) for one in how]}).view(-1, 1, 1, 1)"

    clipped = f"torch.maximum(torch.minimum(x, {column('high')}), {column('low')})"
    return f"lambda x: ({clipped} - {column('mean')}) / {column('sd')}"


def _after(plan: Plan) -> list[dict[str, Any]]:
    """Bring the scores back to the scan's grid, take the largest, name it, write it."""
    prediction = {"keys": "pred"}
    steps: list[dict[str, Any]] = [
        {"_target_": "Invertd", **prediction, "transform": "@preprocessing", "orig_keys": "image",
         "nearest_interp": False, "to_tensor": True},
        {"_target_": "AsDiscreted", **prediction, "argmax": True},
    ]  # fmt: skip
    if plan.one_piece:
        steps.append({"_target_": "KeepLargestConnectedComponentd", **prediction,
                      "independent": False, "connectivity": 3})  # fmt: skip
    if plan.label_values != tuple(range(plan.classes)):
        steps.append({"_target_": "MapLabelValued", **prediction,
                      "orig_labels": list(range(plan.classes)),
                      "target_labels": list(plan.label_values)})  # fmt: skip
    named = "str(meta['filename_or_obj']).replace('_0000.nii', '.nii')"  # the case, as ours is
    steps.append({"_target_": "SaveImaged", **prediction, "output_dir": "@output_dir",
                  "output_postfix": "", "separate_folder": False, "resample": False,
                  "output_dtype": f"$numpy.{label_type(plan.label_values).__name__}",
                  "output_name_formatter":
                  f"$lambda meta, saver: {{'subject': {named}, 'idx': None}}",
                  "print_log": False})  # fmt: skip
    return steps


def metadata(
    folder: Path, card: ModelCard, plan: Plan | None, needs: Mapping[str, str]
) -> dict[str, Any]:
    """Return `metadata.json`: what goes in, what comes out, what it was made from."""
    described = folder if plan is None else folder.parent
    dataset = read_json(described / ("trunk.json" if plan is None else "dataset.json"))
    out = int(card.options["classes"])
    names = (
        [f"feature {k}" for k in range(out)]
        if plan is None
        else [dataset["labels"][str(value)] for value in plan.label_values]
    )
    images = ["image"] if plan is None else dataset["channel_names"]
    saw = dataset["saw"] if plan is None else [{"dataset": dataset["name"]}]
    licences = sorted({one.get("licence", "") for one in saw} | {dataset.get("licence", "")})
    shape = ["*", "*", "*"] if plan is None else list(plan.patch_size)
    space = {"spatial_shape": shape, "dtype": "float32", "is_patch_data": plan is not None}
    return {
        "version": "0.1.0",
        "changelog": {"0.1.0": "exported"},
        "monai_version": MONAI,
        "pytorch_version": torch.__version__.split("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": dict(needs),
        "name": f"{card.net} of {saw[0]['dataset']}",
        "task": "features of voxels" if plan is None else "segmentation",
        "description": f"{card.net} by Qinjing; input axes (D, H, W) run to {', '.join(_AXES)}.",
        "data_source": ", ".join(one["dataset"] for one in saw),
        "copyright": "; ".join(licence for licence in licences if licence),
        "intended_use": "Research; not a medical device.",
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image", "format": "magnitude", "num_channels": len(images), **space,
                    "channel_def": {str(k): name for k, name in enumerate(images)},
                }
            },
            "outputs": {
                "pred": {
                    "type": "image", "format": "features" if plan is None else "segmentation",
                    "num_channels": out, **space,
                    "channel_def": {str(k): name for k, name in enumerate(names)},
                }
            },
        },
    }  # fmt: skip


def readme(card: ModelCard, plan: Plan | None, needs: Mapping[str, str]) -> str:
    """Return the bundle's own page: how to run it, or to start from it."""
    wanted = ", ".join(["monai[fire,ignite]", *sorted(set(needs) - {"pytorch-ignite"})])
    lines = [f"# {card.net}", "", f"Wants {wanted}.", ""]
    if plan is None:
        lines += [
            "A trunk: features of every voxel, learnt without labels; `configs/trunk.json` says "
            "from what. Its last layer gives features, where yours gives classes: load all but "
            "that.",
            "",
            "```python",
            "from monai.bundle import ConfigParser",
            "",
            "parser = ConfigParser()",
            'parser.read_config("configs/inference.json")',
            'parser["bundle_root"] = "."',
            'weights = parser.get_parsed_content("weights")',
            'net = parser.get_parsed_content("network_def")',
            "```",
        ]
    else:
        channels = len(plan.preprocessing.normalisation)
        lines += [
            "Scans are NIfTI files in one folder"
            + (
                f": `NAME_0000.nii.gz` to `NAME_{channels - 1:04d}.nii.gz` for the channels of one "
                "scan, or one file that holds them all."
                if channels > 1
                else "."
            ),
            "",
            "```bash",
            "python -m monai.bundle run --config_file configs/inference.json "
            "--dataset_dir /scans --output_dir /labels",
            "```",
        ]
    if card.net == "unet":
        lines += [
            "",
            "`configs/nnunet_names.json` names every weight as nnU-Net's `PlainConvUNet` does. "
            "There each level takes the coarser map first and the skip second, so the input "
            "halves of `decoder.stages.*.convs.0` change places.",
        ]
    return "\n".join(lines) + "\n"


def as_plain_conv_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a U-Net's weights under the names of nnU-Net's `PlainConvUNet`, halves in its order.

    Both have two convolutions a stage, the same normalisation weights and a transposed convolution
    upwards. Equal output needs groups of four in `norm_op`, a stride by max pooling, and a bias in
    the transposed convolutions alone; nnU-Net's own normalisation and strided convolutions have
    weights of the same shapes, and fine-tuning starts from those.

    Args:
        weights: of `UNet`, (out, in, …) each.
    """
    made: dict[str, Tensor] = {}
    for own, theirs in plain_conv_names(weights).items():
        value = weights[own]
        if theirs.startswith("decoder.stages.") and ".convs.0.conv." in theirs:
            skip, up = value.chunk(2, dim=1)
            value = torch.cat([up, skip], dim=1)
        made[theirs] = value
    return made

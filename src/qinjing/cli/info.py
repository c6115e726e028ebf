"""What `qinjing info` says: the tables of the house, and what runs on this machine."""

from __future__ import annotations

import platform
from importlib import metadata, util
from typing import Any

RUNTIMES = ("torch", "onnxruntime", "openvino", "numpy", "scipy", "nibabel", "monai")


def describe() -> dict[str, Any]:
    """Return nets with parameter counts, the names in the other tables, and runtimes."""
    from qinjing import __version__
    from qinjing.data.layouts import LAYOUTS
    from qinjing.federate.compression import CODECS
    from qinjing.federate.robust import AGGREGATORS
    from qinjing.federate.strategies import STRATEGIES
    from qinjing.losses import LOSSES
    from qinjing.nets import NETS
    from qinjing.registry import names

    return {
        "version": __version__,
        "nets": [{"name": name, "parameters": _parameters(name)} for name in names(NETS, "net")],
        "losses": names(LOSSES, "loss"),
        "layouts": list(LAYOUTS),
        "strategies": names(STRATEGIES, "strategy"),
        "rules": names(AGGREGATORS, "rule"),
        "codecs": names(CODECS, "codec"),
        "runtimes": _runtimes(),
    }


def _parameters(name: str) -> int | None:
    """Parameter count of a net with its own defaults.

    None for a net that another package builds, whose import may take longer than all the rest.
    """
    import torch

    from qinjing.nets import NETS

    if not isinstance(NETS.get(name), type):
        return None
    with torch.device("meta"):  # sizes without memory
        net = NETS[name]()
    return sum(parameter.numel() for parameter in net.parameters())


def _runtimes() -> dict[str, str]:
    """Versions of what is installed, the device, and whether it computes in bf16."""
    import torch

    found = {"python": platform.python_version(), "system": platform.platform(terse=True)}
    for name in RUNTIMES:
        if util.find_spec(name):
            found[name] = metadata.version(name)
    if torch.cuda.is_available():
        found["device"] = f"{torch.cuda.get_device_name()} (CUDA {torch.version.cuda})"
        found["bf16"] = "yes" if torch.cuda.is_bf16_supported() else "no"
    else:
        found["device"] = f"CPU, {torch.get_num_threads()} threads"
        found["bf16"] = _cpu_bf16()
    return found


def _cpu_bf16() -> str:
    """How far the processor goes: in its own instructions, or emulated and slower."""
    import torch

    if torch.cpu._is_amx_tile_supported():
        return "yes (AMX)"
    return "yes (AVX512-BF16)" if torch.cpu._is_avx512_bf16_supported() else "emulated, slower"

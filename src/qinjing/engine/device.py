"""Where and in which precision a network runs."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Execution:
    """How a network is run.

    Attributes:
        device: "cpu" or "cuda".
        precision: "bf16" computes convolutions in bfloat16 and keeps weights in float32.
        channels_last: memory format of feature maps.
    """

    device: str = "cpu"
    precision: Precision = "fp32"
    channels_last: bool = False

    def here(self) -> Execution:
        """Return the same on this machine: its device, and a precision that it computes in."""
        device = default_device()
        known = self.precision in precisions(device)
        return replace(self, device=device, precision=self.precision if known else "fp32")

    def place(self, net: nn.Module) -> nn.Module:
        """Move a network to its device and memory format."""
        net = net.to(self.device)
        if self.channels_last:
            for weight in net.parameters():
                if weight.ndim == 5:  # a net that takes slices one by one has kernels of two axes
                    weight.data = weight.data.contiguous(memory_format=torch.channels_last_3d)
        return net

    def send(self, x: Tensor) -> Tensor:
        """Move a (B, C, D, H, W) batch to the device and memory format."""
        x = x.to(self.device, non_blocking=True)
        return x.contiguous(memory_format=torch.channels_last_3d) if self.channels_last else x

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Compute in the chosen precision inside this block."""
        enabled = self.precision == "bf16"
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=enabled):
            yield


def default_device() -> str:
    """Return "cuda" where there is one, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def precisions(device: str) -> tuple[Precision, ...]:
    """Return the precisions that a device computes in.

    A processor without AVX512 or its like takes a reference kernel for convolutions in bfloat16,
    300 times as slow as float32 (torch 2.13).
    """
    known = torch.ops.mkldnn._is_mkldnn_bf16_supported() if device == "cpu" else True
    return ("fp32", "bf16") if known else ("fp32",)


def candidates(device: str) -> tuple[Execution, ...]:
    """Return every way of running that is worth timing on this device."""
    return tuple(
        Execution(device, precision, channels_last)
        for precision in precisions(device)
        for channels_last in (False, True)
    )


def environment() -> dict[str, str | int]:
    """Describe this machine and its libraries, for reports and evidence."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "system": platform.platform(terse=True),
    }


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def forget_peak_memory(device: str = "cpu") -> None:
    """Let `peak_memory_gib` begin anew, where the system can: Linux, and CUDA devices.

    What was trained before in this process would be counted to what is trained next.
    """
    if device.startswith("cuda"):
        torch.cuda.init()  # where nothing has run yet, there is nothing to reset
        torch.cuda.reset_peak_memory_stats(device)
        return
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc keeps what was freed, and it would count
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory_gib(device: str = "cpu") -> float:
    """Return the largest memory held on a device in GiB, since `forget_peak_memory` if called.

    For the CPU that is the process's resident memory. Where /proc is missing the kernel's own
    account is taken, which on Linux begins with what the parent held when it started this process.
    """
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 2**30
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="utf-8") as file:  # noqa: PTH123
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2 ** (30 if sys.platform == "darwin" else 20)


@torch.inference_mode()
def flops(net: nn.Module, image: Tensor) -> int:
    """Return the floating-point operations of one inference, a multiplication and an addition two.

    Raises:
        RuntimeError: there is not enough memory.
    """
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def attention(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(q, k, v))

    # torch counts attention on a GPU alone.
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={fused: attention}) as counter:
        net(image)
    return int(counter.get_total_flops())

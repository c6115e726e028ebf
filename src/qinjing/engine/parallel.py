"""Data-parallel training under `torchrun`; without it, everything here does nothing.

Gradients are averaged by hand in one flat message a step: the networks fit on one device, and the
loop stays the same code with one process or many.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
import torch.distributed as dist
from torch import nn


@contextmanager
def group() -> Iterator[None]:
    """Join the process group that `torchrun` describes, if any, and leave it at the end."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or dist.is_initialized():
        yield
        return
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if backend == "nccl":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(backend)
    try:
        yield
        dist.barrier()  # a process that leaves early takes the others' connections with it
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """Return this process's number, 0 without a group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return how many processes train together, 1 without a group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this process writes files and reports."""
    return rank() == 0


def wait() -> None:
    """Wait until every process has come here."""
    if dist.is_initialized():
        dist.barrier()


def average_gradients(net: nn.Module) -> None:
    """Replace every gradient by its mean over the processes."""
    if not dist.is_initialized():
        return
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    flat = torch.cat([g.reshape(-1) for g in gradients])
    dist.all_reduce(flat)
    flat /= world_size()
    offset = 0
    for gradient in gradients:
        gradient.copy_(flat[offset : offset + gradient.numel()].view_as(gradient))
        offset += gradient.numel()


def same_progress(progress: Any) -> None:
    """Overwrite a dataclass's numbers with the first process's, whose clock decides."""
    if not dist.is_initialized():
        return
    names = [field.name for field in fields(progress)]
    values = torch.tensor([float(getattr(progress, name)) for name in names], dtype=torch.float64)
    if torch.cuda.is_available():
        values = values.cuda()
    dist.broadcast(values, src=0)
    for name, value in zip(names, values.tolist(), strict=True):
        kind = type(getattr(progress, name))
        setattr(progress, name, kind(value))

"""What travels: one verb, plain fields, groups of tensors, as safetensors bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from qinjing.errors import FormatError

Tensors = dict[str, Tensor]
_LARGEST_HEADER = 64 * 2**20


@dataclass(frozen=True)
class Message:
    """One request or answer.

    Attributes:
        verb: what is asked for, or "refused".
        fields: plain JSON content.
        tensors: group → name → tensor.
    """

    verb: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensors] = field(default_factory=dict)

    def pack(self) -> bytes:
        """Return the message as bytes."""
        flat = {
            f"{group}/{name}": value.detach().cpu().contiguous()
            for group, own in self.tensors.items()
            for name, value in own.items()
        }
        head = json.dumps({"verb": self.verb, "fields": self.fields}, allow_nan=False)
        return save(flat, metadata={"qinjing": head})

    @classmethod
    def unpack(cls, data: bytes) -> Message:
        """Read what `pack` made.

        Raises:
            FormatError: anything else.
        """
        try:
            size = int.from_bytes(data[:8], "little")
            if not 0 < size <= min(len(data) - 8, _LARGEST_HEADER):
                raise ValueError("its header is longer than itself")
            head = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["qinjing"])
            verb, fields = head["verb"], head["fields"]
            if not isinstance(verb, str) or not isinstance(fields, dict):
                raise ValueError("no verb and fields")
            groups: dict[str, Tensors] = {}
            for place, value in load(data).items():
                group, slash, name = place.partition("/")
                if not slash:
                    raise ValueError(f"a tensor without a group, {place}")
                groups.setdefault(group, {})[name] = value
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise FormatError("message", "one of ours, whole", error) from None
        return cls(verb, fields, groups)


def as_tensor(data: bytes | bytearray) -> Tensor:
    """Return bytes as a tensor, uint8 (n,), to travel in a message."""
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())


def as_bytes(tensors: Mapping[str, Tensors], group: str, name: str = "bytes") -> bytes:
    """Return the bytes that came in a message's group.

    Raises:
        FormatError: there are none.
    """
    found = tensors.get(group, {}).get(name)
    if found is None or found.dtype != torch.uint8 or found.ndim != 1:
        raise FormatError("message", f"with bytes in {group}/{name}", sorted(tensors))
    return found.numpy().tobytes()

"""Few bytes for what travels: codecs, error feedback, and one sealed form on the wire."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qinjing import registry
from qinjing.config import from_json
from qinjing.errors import ConfigError, FormatError
from qinjing.federate.compression.codecs import (
    Arrays,
    Codec,
    Float16,
    Float32,
    Quantise,
    Shapes,
    TopK,
)
from qinjing.federate.compression.low_rank import LowRank
from qinjing.federate.compression.spectral import Spectral
from qinjing.federate.compression.wire import Reader, Writer

CODECS: Mapping[str, Callable[..., Codec]] = {
    "float32": Float32,
    "float16": Float16,
    "quantise": Quantise,
    "top_k": TopK,
    "low_rank": LowRank,
    "spectral": Spectral,
}
SMALL = 256
# Statistics that no gradient has touched: a running variance that is off, or below 0, is wrong at
# once and at every voxel, and all of them together are less than a thousandth of a network.
EXACT = ("running_mean", "running_var")
_WIRE = {"float32": "<f4", "int64": "<i8", "int32": "<i4", "uint8": "u1", "bool": "u1"}


@dataclass
class ErrorFeedback:
    """Keeps what was lost on the way and adds it to the next update.

    `lost` is a new dict after every round, never changed in place: who keeps the old one can put it
    back where the bytes did not arrive. It is what must be saved, as safetensors, to resume.

    Attributes:
        lost: name → float32 tensor, wanted less sent; empty at first.

    Source: arXiv:1901.09847.
    """

    lost: dict[str, Tensor] = field(default_factory=dict)


def compress(
    update: Mapping[str, Tensor],
    codec: str | Codec,
    memory: ErrorFeedback | None = None,
    *,
    seed: int = 0,
) -> bytes:
    """Return an update as few bytes.

    Trained tensors with two axes or more and at least 256 numbers go through the codec. Smaller
    ones are sent as halves: as symbols they would cost more for tables than they save, and they are
    less than a hundredth of a network. Whole numbers and running statistics are kept exact.

    Args:
        update: name → difference, any shape, float32 and finite, or whole numbers.
        codec: of `CODECS`, by name or made.
        memory: what was lost in earlier rounds is added first; what is lost now is kept there.
        seed: of what is drawn (the start of power iterations).

    Raises:
        ConfigError: no such codec, or a tensor of another type.
        FormatError: numbers that are not finite.
    """
    made = registry.build(CODECS, "codec", codec) if isinstance(codec, str) else codec
    arrays = {name: _array(name, value) for name, value in update.items()}
    table = [[name, str(value.dtype), list(value.shape)] for name, value in arrays.items()]
    exact, small, large = _parts(table)
    if memory is not None:
        for name in small.keys() | large.keys():
            arrays[name] = arrays[name] + _lost(name, arrays[name], memory.lost)
    out = Writer()
    for name, kind in exact.items():
        out.put(arrays[name], _WIRE[kind])
    plain = made if isinstance(made, Float32) else Float16()
    seen = plain.write({name: arrays[name] for name in small}, out, seed)
    seen |= made.write({name: arrays[name] for name in large}, out, seed)
    if memory is not None:
        memory.lost = {
            name: torch.from_numpy(np.asarray(arrays[name] - own)) for name, own in seen.items()
        }
    return out.seal({"codec": _described(made), "tensors": table})


def decompress(data: bytes, shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Return the update that `compress` was given, as far as its codec kept it.

    Safe with bytes from anywhere: room is made for what `shapes` say, whatever the bytes say.

    Args:
        data: what `compress` returned.
        shapes: name → shape of each tensor, in any order, as the receiver knows them.

    Raises:
        FormatError: the bytes are damaged, of another version, or of other tensors.
    """
    source = Reader(data)
    try:
        header = from_json(source.header, _Header)
        made = _made(dict(header.codec))
    except ConfigError as error:
        raise FormatError("header", "an update's", error) from None
    table = header.tensors
    _check_tensors(table, {name: list(shape) for name, shape in shapes.items()})
    exact, small, large = _parts(table)
    of = {name: tuple(shape) for name, _, shape in table}
    source.unpack(2 * sum(prod(of[name]) for name in large) + 1024)
    found: Arrays = {}
    for name, kind in exact.items():
        numbers = source.take(prod(of[name]), _WIRE[kind]).reshape(of[name])
        found[name] = numbers.astype(kind)
    plain = made if isinstance(made, Float32) else Float16()
    with np.errstate(all="ignore"):  # what is not finite is refused below
        found |= plain.read({name: of[name] for name in small}, source)
        found |= made.read({name: of[name] for name in large}, source)
    source.finish()
    for name, numbers in found.items():
        if not np.isfinite(numbers).all():
            raise FormatError("update", "finite", "inf or nan", where=name)
    return {name: torch.from_numpy(np.array(found[name])) for name in of}


@dataclass(frozen=True)
class _Header:
    codec: dict[str, Any]
    tensors: tuple[tuple[str, str, tuple[int, ...]], ...]


def _described(codec: Codec) -> dict[str, Any]:
    for name in registry.names(CODECS, "codec"):
        if registry.constructor(CODECS, "codec", name) is type(codec):
            return {"name": name, **asdict(codec)}  # type: ignore[call-overload]
    raise ConfigError("codec", f"one of {', '.join(CODECS)}", type(codec).__name__)


def _made(description: dict[str, Any]) -> Codec:
    name = description.pop("name", "")
    made: Codec = from_json(
        description, registry.constructor(CODECS, "codec", str(name)), where="codec"
    )
    return made


def _array(name: str, value: Tensor) -> np.ndarray:
    numbers: np.ndarray = value.detach().cpu().contiguous().numpy()
    if str(numbers.dtype) not in _WIRE:
        raise ConfigError(
            "update", f"of {', '.join(_WIRE)}", value.dtype, where=name, advice="convert it"
        )
    if not np.isfinite(numbers).all():
        raise FormatError(
            "update", "finite", "inf or nan", where=name, advice="the training diverged"
        )
    return numbers


def _lost(name: str, like: np.ndarray, lost: Mapping[str, Tensor]) -> np.ndarray:
    if name not in lost:
        return np.zeros((), np.float32)
    if lost[name].shape != like.shape or lost[name].dtype != torch.float32:
        raise ConfigError(
            "memory", f"float32 of {like.shape}", tuple(lost[name].shape), where=name,
            advice="it belongs to another network; begin with an empty one",
        )  # fmt: skip
    return lost[name].numpy()


def _parts(table: Iterable[Sequence[Any]]) -> tuple[dict[str, str], Shapes, Shapes]:
    """Return what is sent exactly (name → type), as halves, and by the codec (name → shape)."""
    exact: dict[str, str] = {}
    small: dict[str, tuple[int, ...]] = {}
    large: dict[str, tuple[int, ...]] = {}
    for name, kind, shape in table:
        if kind != "float32" or name.rpartition(".")[2] in EXACT:
            exact[name] = kind
        elif len(shape) < 2 or prod(shape) < SMALL:
            small[name] = tuple(shape)
        else:
            large[name] = tuple(shape)
    return exact, small, large


def _check_tensors(table: Sequence[Sequence[Any]], shapes: Mapping[str, list[int]]) -> None:
    names = [name for name, _, _ in table]
    if len(set(names)) != len(names) or set(names) != shapes.keys():
        differ = sorted(set(names) ^ shapes.keys()) or names
        raise FormatError("update", "of the tensors that are known", differ[0])
    for name, kind, shape in table:
        if list(shape) != shapes[name]:
            raise FormatError("update", f"of shape {shapes[name]}", list(shape), where=name)
        if kind not in _WIRE:
            raise FormatError("update", f"of {', '.join(_WIRE)}", kind, where=name)

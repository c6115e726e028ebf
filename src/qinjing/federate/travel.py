"""How a state travels: whole, or as the few bytes of a change from what the other side holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from qinjing.engine.checkpoint import load_tensors, save_tensors
from qinjing.errors import FormatError
from qinjing.federate.compression import ErrorFeedback, compress, decompress
from qinjing.federate.message import Message, Tensors, as_bytes, as_tensor
from qinjing.federate.strategies import State

Names = dict[str, str | list[str]]
FIRST = "float16"  # what is held at the beginning, when nothing is there to change
_ALL, _FLOATING = "all", "floating"


def flat(state: Mapping[str, Tensors]) -> Tensors:
    """Return a state as one level, group/name → tensor."""
    return {f"{group}/{name}": value for group, own in state.items() for name, value in own.items()}


def grouped(tensors: Mapping[str, Tensor]) -> State:
    """Return what `flat` was given, groups of nothing left out."""
    state: State = {}
    for place, value in tensors.items():
        group, _, name = place.partition("/")
        state.setdefault(group, {})[name] = value
    return state


def names_of(tensors: Mapping[str, Tensor], net: Mapping[str, Tensor]) -> Names:
    """Return which weights of a network each group has, in few words where it has all.

    Args:
        tensors: flat.
        net: the network's own, by name.
    """
    floating = {name for name, value in net.items() if value.is_floating_point()}
    told: Names = {}
    for group, own in grouped(tensors).items():
        if own.keys() == net.keys():
            told[group] = _ALL
        elif own.keys() == floating:
            told[group] = _FLOATING
        else:
            told[group] = sorted(own)
    return told


def shapes_of(told: object, net: Mapping[str, Tensor]) -> dict[str, Sequence[int]]:
    """Return group/name → shape of what `names_of` told, as far as it is the network's.

    Raises:
        FormatError: it names what the network has not.
    """
    if not isinstance(told, Mapping):
        raise FormatError("names", "by group", told)
    shapes: dict[str, Sequence[int]] = {}
    for group, names in told.items():
        if names in (_ALL, _FLOATING):
            names = [n for n, v in net.items() if names == _ALL or v.is_floating_point()]
        if not isinstance(names, list) or not all(name in net for name in names):
            raise FormatError(f"names of {group}", "the network's", "others")
        shapes |= {f"{group}/{name}": tuple(net[name].shape) for name in names}
    return shapes


def packed(
    tensors: Mapping[str, Tensor], codec: str, memory: ErrorFeedback | None = None, seed: int = 0
) -> State:
    """Return tensors as a message's, one tensor of few bytes."""
    return {"few": {"bytes": as_tensor(compress(tensors, codec, memory, seed=seed))}}


def unpacked(tensors: Mapping[str, Tensors], shapes: Mapping[str, Sequence[int]]) -> Tensors:
    """Return what `packed` was given, as far as the codec kept it.

    Raises:
        FormatError: damaged bytes, or those of other tensors.
    """
    return decompress(as_bytes(tensors, "few"), shapes)


class Outgoing:
    """What a coordinator sends, as a chain of changes that every site follows.

    Sites hold the sum of what was sent, and changes are made from that: what a codec loses in one
    round is in the next round's change.

    Args:
        codec: name in `CODECS`.
        held: what all sites hold, flat; empty at first.
        round: in which it was sent.
    """

    def __init__(self, codec: str, held: Tensors, round: int) -> None:
        self.codec, self.held, self.round = codec, held, round
        self.base = round

    def advance(self, state: Mapping[str, Tensors], round: int, codec: str = "") -> State:
        """Make the round's message and move on to what sites will hold then."""
        now = flat(state)
        change = {n: v - self.held[n] if n in self.held else v for n, v in now.items()}
        codec = FIRST if not self.held else codec or self.codec
        sent = packed(change, codec, seed=round)
        shapes = {name: tuple(value.shape) for name, value in change.items()}
        self.held = after(self.held, unpacked(sent, shapes))
        self.base, self.round = self.round, round
        return sent


def after(held: Mapping[str, Tensor], change: Mapping[str, Tensor]) -> Tensors:
    """Return what is held after a change, names that it brings included."""
    return {n: held[n] + v if n in held else v for n, v in change.items()}


def part(tensors: Mapping[str, Tensor], prefix: str) -> Tensors:
    """Return the tensors whose names begin so, without that beginning."""
    return {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """Return what `part` is given."""
    return {f"{prefix}{name}": value for name, value in tensors.items()}


def received_of(message: Message, folder: Path, net: Mapping[str, Tensor]) -> State | None:
    """Return what a coordinator sent, whole or made from what is held; None where it cannot be.

    Args:
        message: as it came.
        folder: of the training, where what is held lies.
        net: name → tensor of the network, for shapes.
    """
    if not message.fields.get("codec"):
        return dict(message.tensors)
    path, number = folder / "held.safetensors", int(message.fields["number"])
    held, known = load_tensors(path) if path.exists() else ({}, {"number": -2})
    if known["number"] == number:  # it was here before a kill
        return grouped(held)
    base = message.fields.get("base")
    if base is None:
        held = flat(message.tensors)
    else:
        if base >= 0 and known["number"] != base:
            return None
        change = unpacked(message.tensors, shapes_of(message.fields["names"], net))
        held = after(held if base >= 0 else {}, change)
    save_tensors(path, held, {"number": number})
    return grouped(held)

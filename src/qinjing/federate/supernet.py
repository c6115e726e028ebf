"""A network whose smaller kin are slices of its own tensors: widths and depths share weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from qinjing.engine.checkpoint import ModelCard
from qinjing.engine.fit import FitConfig, optimiser_for
from qinjing.engine.muon import is_orthogonal
from qinjing.errors import ConfigError
from qinjing.federate.message import Tensors
from qinjing.federate.strategies.strategy import weighted_mean
from qinjing.nets import NETS

# Made of convolutions alone, normalised in groups of four channels: four more are one group more.
SLICED = tuple(name for name in NETS if name in ("unet", "residual_unet", "subvoxel_unet"))
_GROUP = 4
_Rows = tuple[tuple[int, ...] | None, ...]  # of the first two axes; None takes all


@dataclass(frozen=True)
class Architecture:
    """A slice of a supernet.

    Attributes:
        widths: channels of each stage, finest first.
        blocks: of each encoder stage, where the network lets them be chosen; else none.
    """

    widths: tuple[int, ...]
    blocks: tuple[int, ...] = ()


class Supernet:
    """The largest network, and which entries of its tensors each architecture has.

    An architecture has the first channels of every stage and its first blocks, and of convolutions
    that take several maps side by side the first channels of each map. It is the very network of a
    smaller configuration, so that what it learns and sends is no larger than itself.

    Args:
        card: of the largest.

    Raises:
        ConfigError: a network that cannot be sliced.

    Source: arXiv:1812.08928 (slimmable networks), arXiv:2010.01264 (HeteroFL), arXiv:1908.09791
        (once for all: depth).
    """

    def __init__(self, card: ModelCard) -> None:
        if card.net not in SLICED:
            raise ConfigError("net of a search", f"one of {', '.join(SLICED)}", card.net)
        self._card = card
        self._net = _hollow(card)
        self._shapes = {name: tuple(v.shape) for name, v in self._net.state_dict().items()}
        blocks = tuple(getattr(self._net, "blocks", ()))
        self.largest = Architecture(tuple(self._net.widths), blocks)
        self._rows = lru_cache(maxsize=64)(self._find_rows)
        self._places = lru_cache(maxsize=1)(self._find_places)

    def card(self, architecture: Architecture) -> ModelCard:
        """Return what builds an architecture as a network of its own.

        Raises:
            ConfigError: it is no slice of this one.
        """
        most = self.largest
        widths = list(zip(architecture.widths, most.widths, strict=False))
        fits = len(architecture.widths) == len(most.widths)
        fits &= all(1 <= w <= m and (w == m or w % _GROUP == 0) for w, m in widths)
        depths = list(zip(architecture.blocks, most.blocks, strict=False))
        fits &= len(architecture.blocks) == len(most.blocks) and all(1 <= b <= m for b, m in depths)
        if not fits:
            raise ConfigError("architecture", f"a slice of {most}", architecture)
        options = {**self._card.options, "widths": list(architecture.widths)}
        if architecture.blocks:
            options["blocks"] = list(architecture.blocks)
        return replace(self._card, options=options)

    def shapes(self, architecture: Architecture) -> dict[str, tuple[int, ...]]:
        """Return name → shape of an architecture's tensors."""
        sizes = {}
        for name, rows in self._rows(architecture).items():
            whole = self._shapes[name]
            own = tuple(n if r is None else len(r) for n, r in zip(whole, rows, strict=False))
            sizes[name] = own + whole[len(own) :]
        return sizes

    def cut(self, tensors: Mapping[str, Tensor], architecture: Architecture) -> Tensors:
        """Return an architecture's slice of the whole's tensors, those that are there."""
        rows = self._rows(architecture)
        return {n: _taken(v, rows[n]) for n, v in tensors.items() if n in rows}

    def spread(self, tensors: Mapping[str, Tensor], architecture: Architecture) -> Tensors:
        """Return tensors of the whole that have a slice's values where it has any, else zeros."""
        rows = self._rows(architecture)
        return {n: _put(v, rows[n], self._shapes[n]) for n, v in tensors.items()}

    def mean(
        self, of: Sequence[Architecture], changes: Sequence[Tensors], cases: Sequence[float]
    ) -> Tensors:
        """Return each entry's mean over the slices that have it, weighted by cases.

        Args:
            of: whose slice each change is.
            changes: name → tensor of a slice.
            cases: n_k of each.

        Returns:
            Tensors of the whole, zero where no slice reaches.

        Source: arXiv:2010.01264 (HeteroFL), equations 2 to 5.
        """
        if all(one == self.largest for one in of):  # to the bit what there is without a search
            return weighted_mean(changes, cases)
        out = {}
        for name in {name: None for own in changes for name in own}:
            total = torch.zeros(self._shapes[name], dtype=torch.float64)
            weight = torch.zeros_like(total)
            for one, own, n in zip(of, changes, cases, strict=True):
                if name in own:
                    place = self._rows(one)[name], self._shapes[name]
                    total += _put(n * own[name].double(), *place)
                    weight += _put(torch.full_like(own[name], n, dtype=torch.float64), *place)
            kind = next(own[name].dtype for own in changes if name in own)
            out[name] = (total / weight.clamp_min(torch.finfo(torch.float64).tiny)).to(kind)
        return out

    def multiply_adds(self, architecture: Architecture, patch: Sequence[int]) -> int:
        """Return the multiply-adds of one image's way forward.

        Args:
            architecture: which.
            patch: voxels along D, H and W.
        """
        places, shapes = self._places(tuple(patch)), self.shapes(architecture)
        return sum(times * prod(shapes[name]) for name, times in places.items() if name in shapes)

    def parameters(self, architecture: Architecture) -> int:
        """Return how many numbers an architecture has."""
        return sum(prod(shape) for shape in self.shapes(architecture).values())

    def memory(
        self, kept: Tensors, was: Architecture, now: Architecture, config: FitConfig
    ) -> Tensors:
        """Return an optimiser's memory of one slice as another's; new entries begin at zero.

        Args:
            kept: as `Rounds.memory` returned it, among other tensors, which are left out.
            was: the slice that it is of.
            now: the slice that it is for.
            config: names the optimiser.
        """
        before, after = (self._order(one, config) for one in (was, now))
        place = {name: number for number, name in enumerate(before)}
        own, other = self.shapes(was), self.shapes(now)
        moved: Tensors = {}
        for number, name in enumerate(after):
            if name not in place or _rule(own[name]) != _rule(other[name]):
                continue  # a new block, or a kernel that grew into the other rule of updating
            prefix = f"optimiser/{place[name]}/"
            for key, value in kept.items():
                if key.startswith(prefix):
                    if tuple(value.shape) == own[name]:
                        value = self.cut(self.spread({name: value}, was), now)[name]
                    moved[f"optimiser/{number}/{key.removeprefix(prefix)}"] = value
        return moved

    def _find_places(self, patch: tuple[int, ...]) -> dict[str, int]:
        """Name of each kernel → at how many voxels it is used; the same in every slice."""
        places: dict[str, int] = {}

        def count(name: str, layer: nn.Module, given: Any, made: Tensor) -> None:
            where = given[0] if isinstance(layer, nn.ConvTranspose3d) else made
            places[f"{name}.weight"] = prod(where.shape[2:])

        layers = [
            layer.register_forward_hook(partial(count, name))
            for name, layer in self._net.named_modules()
            if isinstance(layer, nn.Conv3d | nn.ConvTranspose3d)
        ]
        channels = int(self._card.options.get("in_channels", 1))
        self._net.eval()(torch.zeros(1, channels, *patch, device="meta"))
        for layer in layers:
            layer.remove()
        return places

    def _order(self, architecture: Architecture, config: FitConfig) -> list[str]:
        """Names of parameters in the order in which the optimiser numbers them."""
        with torch.random.fork_rng(devices=[]):
            net = self.card(architecture).build()
        names = {id(p): name for name, p in net.named_parameters()}
        groups = optimiser_for(net, config).param_groups
        return [names[id(p)] for group in groups for p in group["params"]]

    def _find_rows(self, architecture: Architecture) -> dict[str, _Rows]:
        """Name → which rows of the first two axes of the whole's tensor an architecture has."""
        net = _hollow(self.card(architecture))
        own_joins, all_joins = net.joins(), self._net.joins()
        rows: dict[str, _Rows] = {}
        for name, value in net.state_dict().items():
            whole = self._shapes[name]
            found: list[tuple[int, ...] | None] = []
            for axis, (few, many) in enumerate(zip(value.shape[:2], whole[:2], strict=True)):
                own, all_ = (few,), (many,)
                if axis == 1 and name in own_joins:
                    own, all_ = own_joins[name], all_joins[name]
                found.append(None if few == many else _beginnings(own, all_))
            rows[name] = tuple(found)
        return rows


def _hollow(card: ModelCard) -> Any:
    """A network of shapes without numbers, which draws no chance."""
    with torch.device("meta"):
        return card.build()


def _rule(shape: Sequence[int]) -> bool:
    return is_orthogonal(torch.empty(tuple(shape), device="meta"))


def _beginnings(own: Sequence[int], whole: Sequence[int]) -> tuple[int, ...]:
    """Places of the first channels of each of several maps that lie side by side."""
    starts = [sum(whole[:k]) for k in range(len(whole))]
    return tuple(s + i for s, few in zip(starts, own, strict=True) for i in range(few))


def _taken(value: Tensor, rows: _Rows) -> Tensor:
    for axis, some in enumerate(rows):
        if some is not None:
            value = value.index_select(axis, torch.tensor(some))
    return value


def _put(value: Tensor, rows: _Rows, shape: Sequence[int]) -> Tensor:
    """A tensor of a shape with the values in its rows, zeros elsewhere."""
    if all(some is None for some in rows):
        return value
    for axis, some in enumerate(rows):
        if some is not None:
            wide = list(value.shape)
            wide[axis] = shape[axis]
            value = value.new_zeros(wide).index_copy_(axis, torch.tensor(some), value)
    return value

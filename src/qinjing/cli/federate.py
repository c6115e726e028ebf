"""The commands that train with other hospitals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qinjing.cli import show
from qinjing.cli.arguments import Command, argument, at_least
from qinjing.cli.record import DATASET, output_argument, record, refused


@dataclass(frozen=True)
class FederateSimulate(Command):
    """Simulate a federation on one machine, beside each site alone and all pooled."""

    dataset: Path = field(metadata=DATASET)
    output: Path = field(
        metadata=output_argument("FOLDER", "model, sites and comparison; what is there is kept")
    )
    sites: int | None = field(
        default=None,
        metadata=argument(
            "--sites", metavar="N", parse=at_least(2, "--sites"),
            help="deal the patients to so many; else one for each group of participants.tsv",
        ),
    )  # fmt: skip
    strategy: str = field(
        default="fedavg",
        metadata=argument("--strategy", metavar="NAME", help="see `qinjing info`"),
    )
    combine: str = field(
        default="mean",
        metadata=argument("--combine", metavar="NAME", help="mean, or a rule against liars"),
    )
    rounds: int = field(
        default=30,
        metadata=argument(
            "--rounds", metavar="N", parse=at_least(1, "--rounds"), help="how often weights travel"
        ),
    )
    steps: int = field(
        default=10,
        metadata=argument(
            "--steps", metavar="N", parse=at_least(1, "--steps"), help="of each site in a round"
        ),
    )
    net: str = field(
        default="residual_unet",
        metadata=argument("--net", metavar="NET", help="see `qinjing info`"),
    )
    codec: str = field(
        default="",
        metadata=argument(
            "--codec", metavar="NAME", help="few bytes both ways, see `qinjing info`"
        ),
    )
    secure: bool = field(
        default=False,
        metadata=argument("--secure", help="show the coordinator sums of updates alone"),
    )
    clip_norm: float | None = field(
        default=None,
        metadata=argument(
            "--clip", metavar="C", parse=at_least(0, "--clip", float),
            help="length to which each site's update is clipped; sites then weigh the same",
        ),
    )  # fmt: skip
    noise: float = field(
        default=0.0,
        metadata=argument(
            "--noise", metavar="SIGMA", parse=at_least(0, "--noise", float),
            help="on the sum of clipped updates, as a multiple of C: differential privacy",
        ),
    )  # fmt: skip
    secure_bound: float = field(
        default=1000.0,
        metadata=argument(
            "--bound", metavar="B", parse=at_least(1, "--bound", float),
            help="largest cases·change that a secure sum has room for",
        ),
    )  # fmt: skip
    share: float = field(
        default=1.0,
        metadata=argument(
            "--share", metavar="SHARE", parse=at_least(0, "--share", float),
            help="of the sites that are asked in a round",
        ),
    )  # fmt: skip
    spread: float = field(
        default=0.7,
        metadata=argument(
            "--spread", metavar="S", parse=at_least(0, "--spread", float),
            help="deviation of the logarithm of the sites' sizes",
        ),
    )  # fmt: skip
    failing: float = field(
        default=0.0,
        metadata=argument(
            "--failing", metavar="SHARE", parse=at_least(0, "--failing", float),
            help="of rounds that a site does not answer",
        ),
    )  # fmt: skip
    liars: int = field(
        default=0,
        metadata=argument(
            "--liars", metavar="N", parse=at_least(0, "--liars"), help="sites that send lies"
        ),
    )
    search: bool = field(
        default=False,
        metadata=argument("--search", help="search for the architecture in the first half"),
    )
    per_site: bool = field(
        default=False,
        metadata=argument("--per-site", help="with --search: one for each site"),
    )
    compute: tuple[float, ...] = field(
        default=(),
        metadata=argument(
            "--compute", metavar="SHARE", parse=at_least(0, "--compute", float),
            help="of the largest network that sites afford in a search, by turns",
        ),
    )  # fmt: skip
    splits: Path | None = field(
        default=None,
        metadata=argument(
            "--splits", metavar="FILE", there=True,
            help="its first fold says who is held out, not a fifth of each site's patients",
        ),
    )  # fmt: skip
    alone: bool = field(
        default=False,
        metadata=argument("--alone", help="leave out training on all pooled and on each site's"),
    )
    seed: int = field(
        default=0,
        metadata=argument(
            "--seed", metavar="S", parse=at_least(0, "--seed"), help="of all that is drawn"
        ),
    )

    def run(self) -> dict[str, Any]:
        """Train together, then each alone and all pooled, and compare."""
        from qinjing import evidence
        from qinjing.cli.watch import watch
        from qinjing.federate.federation import FederationConfig
        from qinjing.federate.simulate import SimulationConfig, simulate
        from qinjing.report.compare import compare_files

        federation = FederationConfig(
            self.output,
            rounds=self.rounds,
            steps=self.steps,
            strategy=self.strategy,
            combine=self.combine,
            codec=self.codec,
            net=self.net,
            seed=self.seed,
            share=self.share,
            clip_norm=self.clip_norm,
            noise=self.noise,
            secure_bound=self.secure_bound,
            search=search_config(self.search, self.per_site),
        )
        config = SimulationConfig(
            self.dataset,
            federation,
            self.sites,
            self.spread,
            self.failing,
            self.liars,
            self.secure,
            beside=not self.alone,
            compute=self.compute,
            splits=self.splits,
        )
        with watch() as tell:
            result = simulate(config, tell)
        if self.alone:
            return result
        runs = [Path(run) for run in result["runs"].values()]
        read = evidence.digested({f"run {name}": Path(run) for name, run in result["runs"].items()})
        compared = compare_files(runs, self.output / "comparison", self.dataset)
        made = sorted((self.output / "comparison").iterdir())
        record(self, "federate simulate", read, made)
        return result | {"comparison": compared}

    def text(self, result: Mapping[str, Any]) -> str:
        """What each site has and reaches, what travelled, and the comparison."""
        rows = []
        for site, size in result["sizes"].items():
            own = result["sites"].get(site, {}).get("dice", {}).get("mean")
            rows.append((site, size["train"], size["val"], "" if own is None else f"{own:.4f}"))
        lines = [show.table(("site", "learns from", "holds out", "Dice"), rows)]
        spent = result["bytes"]
        lines.append(
            f"{result['rounds']} rounds, {spent['sent'] / 1e6:.1f} MB sent to sites, "
            f"{spent['received'] / 1e6:.1f} MB received, {result['seconds']:.0f} s"
        )
        if "search" in result:
            lines.append(searched(result["search"]))
        if "comparison" in result:
            lines.append(show.comparison(result["comparison"]))
            lines.append(f"written: {self.output / 'comparison' / 'comparison.html'}")
        return "\n".join(lines)

    def refusals(self, result: Mapping[str, Any]) -> list[str]:
        """Each site that did not take part, and each case that could not be trained on."""
        sites = [f"{site}: {reason}" for site, reason in result["refused"].items()]
        return sites + refused({"refused": result["refused_cases"]})

    def after_stop(self) -> str:
        """How to go on after Ctrl-C."""
        return f"what is trained in {self.output} is kept: give the same command again"


def search_config(wanted: bool, per_site: bool) -> Any:
    """Return what to search for, or None.

    Raises:
        ConfigError: --per-site without --search.
    """
    from qinjing.errors import ConfigError
    from qinjing.federate.federation import SearchConfig

    if per_site and not wanted:
        raise ConfigError("--per-site", "given with --search", "alone")
    return SearchConfig(per_site=per_site) if wanted else None


def searched(found: Mapping[str, Any]) -> str:
    """What a search found: those that nothing beats in cost and Dice, and which were chosen."""
    rows = []
    for place, one in enumerate(found["candidates"]):
        sites = [site for site, own in found["sites"].items() if own == place]
        if not (one["front"] or sites or place == found["chosen"]):
            continue
        dice = "" if one["dice"] is None else f"{one['dice']:.4f}"
        seconds = "" if one["step_s"] is None else f"{one['step_s']:.3f}"
        cost = (f"{one['million_multiply_adds']:.1f}", f"{one['megabytes']:.2f}", seconds)
        mark = "chosen" if place == found["chosen"] else ""
        names = ("-".join(map(str, one["widths"])), "-".join(map(str, one["blocks"])))
        rows.append((*names, *cost, dice, mark, ", ".join(sites)))
    heads = ("widths", "blocks", "million multiply-adds", "MB", "s a step", "Dice", "", "sites")
    return show.table(heads, rows)

"""What does differential privacy cost in Dice, by ε?

The cases of a data set are dealt to sites as `federation.py` does. Each line trains with the same
plan and steps: as it is, with updates clipped, and with more and more noise on the secure sum. What
is protected is a site's whole part (δ = 1e-5); ε is what the sites' own accounts say at the end.

    .venv/bin/python benchmarks/privacy_curve.py -i ../shared/data/Task04_Hippocampus \
        -o benchmarks/results/privacy_curve.json --picture benchmarks/results/privacy_curve.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from federation import deal, dice

from qinjing.cli.watch import watch
from qinjing.config import write_json
from qinjing.engine.device import environment
from qinjing.federate.federation import FederationConfig
from qinjing.federate.simulate import SimulationConfig, simulate


def draw(rows: dict[str, Any], path: Path) -> None:
    """Dice over ε, and without noise as a line."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    noisy = [row for row in rows.values() if row["epsilon"]]
    figure, axes = plt.subplots(figsize=(6, 4))
    axes.axhline(rows["as it is"]["dice"]["mean"], color="C1", label="as it is")
    axes.axhline(rows["clipped"]["dice"]["mean"], color="C2", ls="--", label="clipped, no noise")
    axes.plot(
        [r["epsilon"] for r in noisy], [r["dice"]["mean"] for r in noisy], "o-", label="noise"
    )
    for row in noisy:
        axes.annotate(f"σ = {row['noise']:g}", (row["epsilon"], row["dice"]["mean"]),
                      xytext=(0, 8), textcoords="offset points", ha="center")  # fmt: skip
    axes.set(
        xscale="log", xlabel="ε spent by a site (δ = 1e-5)", ylabel="mean Dice", ylim=(-0.03, 1)
    )
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-i", "--input", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--work", type=Path, default=Path(".scratch/privacy_curve"))
    parser.add_argument("--noise", type=float, nargs="+", default=[0.3, 1.0, 3.0])
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--net", default="subvoxel_unet")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    source = args.work / "dealt"
    deal(args.input, source)
    wanted: list[tuple[str, float | None, float]] = [
        ("as it is", None, 0.0),
        ("clipped", args.clip, 0),
    ]
    wanted += [(f"noise {noise:g}", args.clip, noise) for noise in args.noise]
    rows: dict[str, Any] = {}
    for name, clip, noise in wanted:
        output = args.work / name.replace(" ", "_")
        federation = FederationConfig(
            output, rounds=args.rounds, steps=args.steps, net=args.net, clip_norm=clip, noise=noise
        )
        with watch() as tell:
            result = simulate(
                SimulationConfig(source, federation, beside=False, secure=noise > 0), tell
            )
        spent = [told.get("epsilon") for told in result["sites"].values()]
        rows[name] = {
            "noise": noise,
            "clip_norm": clip,
            "epsilon": max((e for e in spent if e is not None), default=None),
            "dice": dice(output),
            "seconds": result["seconds"],
        }
        print(json.dumps({name: rows[name]}), flush=True)
    report = {
        "federations": rows, "sites": len(result["sites"]), "net": args.net, "rounds": args.rounds,
        "steps": args.steps, "environment": environment(),
    }  # fmt: skip
    print(json.dumps(report, indent=2))
    if args.output:
        write_json(args.output, report)
    if args.picture:
        draw(rows, args.picture)


if __name__ == "__main__":
    main()

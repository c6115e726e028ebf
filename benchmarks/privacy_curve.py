"""What does differential privacy cost in Dice, by ε?

The hundred hospitals of `hundred_sites.py`, all of them in every round, sums secure: as it is, with
updates clipped, and with more and more noise on the sum. What is protected is a site's whole part
(δ = 1e-5); ε is what the sites' own accounts say at the end. How much of a model is left hangs on
the number of sites and of weights: noise has its length in every weight, an update is shared out
over all of them. So this network has 82,000.

    .venv/bin/python benchmarks/privacy_curve.py -o benchmarks/results/privacy_curve.json \
        --picture benchmarks/results/privacy_curve.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from hundred_sites import NET, WIDTHS, draw_sites, run, small_plan

from qinjing.config import write_json
from qinjing.engine.device import environment


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
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--work", type=Path, default=Path(".scratch/hundred_sites"))
    parser.add_argument("--sites", type=int, default=100)
    parser.add_argument("--noise", type=float, nargs="+", default=[0.5, 2.0, 8.0])
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=2)
    args = parser.parse_args()
    dataset = draw_sites(args.work / "data", args.sites)
    plan = small_plan(dataset, args.rounds * args.steps)
    wanted: dict[str, dict[str, Any]] = {"as it is": {}, "clipped": {"clip_norm": args.clip}}
    for noise in args.noise:
        wanted[f"noise {noise:g}"] = {"clip_norm": args.clip, "noise": noise, "secure": True}
    rows: dict[str, Any] = {}
    for name, more in wanted.items():
        noise = more.get("noise", 0.0)
        place = f"privacy_{name.replace(' ', '_')}"
        rows[name] = {"noise": noise, **run(place, args, dataset, plan, 1.0, **more)}
        print(json.dumps({name: rows[name]}), flush=True)
    report = {
        "federations": rows, "sites": args.sites, "net": NET, "widths": WIDTHS,
        "clip_norm": args.clip, "rounds": args.rounds, "steps": args.steps,
        "environment": environment(),
    }  # fmt: skip
    print(json.dumps(report, indent=2))
    if args.output:
        write_json(args.output, report)
    if args.picture:
        draw(rows, args.picture)


if __name__ == "__main__":
    main()

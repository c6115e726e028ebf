"""The figures of the README are those that were measured."""

from __future__ import annotations

import json
from statistics import mean
from typing import Any

from tests.docs.pages import PROJECT


def result(name: str) -> dict[str, Any]:
    path = PROJECT / "benchmarks" / "results" / f"{name}.json"
    return dict(json.loads(path.read_text(encoding="utf-8")))


def row(question: str) -> str:
    lines = (PROJECT / "README.md").read_text(encoding="utf-8").splitlines()
    (found,) = [line for line in lines if line.startswith(f"| {question}")]
    return found


def test_time_to_dice() -> None:
    measured, said = result("time_to_dice"), row("time to a mean Dice")
    assert f"| {measured['ours']['seconds']:.0f} s |" in said
    assert f"{round(measured['nnunet']['seconds'], -1):,.0f} s" in said
    assert f"{measured['nnunet']['steps_to_target']:,} steps of its published curve" in said
    assert f"mean Dice of {measured['target_mean_dice']} on {measured['split']['val']} un" in said
    assert f"{measured['ours']['machine']['cores']} CPU cores" in said


def test_networks() -> None:
    said, measured = row("mean Dice and HD95 of 30 cardiac"), result("networks_acdc")
    assert measured["test_cases"] == 30
    rows = {one["net"]: one for one in measured["rows"]}

    def figures(net: str) -> str:
        return f"{mean(rows[net]['dice']):.3f}, {mean(rows[net]['hd95_mm']):.1f} mm"

    assert f"| residual U-Net: {figures('residual_unet')}; the survey's" in said
    assert rows["residual_unet"]["against"]["dice"]["verdict"] == "better"
    assert f"hybrid: {figures('hybrid')}, no difference shown to the U-Net |" in said
    for metric in ("dice", "hd95_mm"):
        assert rows["hybrid"]["against"][metric]["verdict"] == "no difference shown"
    assert {len(one["dice"]) for one in rows.values()} == {3, 6} and "3 seeds or 6" in said
    assert f"| U-Net: {figures('unet')}; SegResNet of MONAI: {figures('segresnet')} |" in said
    assert f"the time of {rows['unet']['steps']} steps of a U-Net" in said


def test_federation() -> None:
    said, measured = row("mean Dice of 39 held-out hippocampi"), result("federation_hippocampus")
    plain, few = (measured["federations"][name] for name in ("fedavg", "fedavg-spectral"))

    def figure(one: dict[str, Any]) -> str:
        (moved,) = {f"{n:.1f} MB" for n in one["megabytes_a_round"].values()}
        return f"{one['dice']['mean']:.3f} with {moved}"

    assert f"| federated: {figure(plain)}, {figure(few)} |" in said
    assert f"pooled, as many steps: {measured['pooled']['mean']:.3f};" in said
    alone = sorted(one["mean"] for one in measured["alone"].values())
    assert f"each site alone: {alone[0]:.3f} to {alone[-1]:.3f} |" in said
    assert f"after {measured['rounds'] * measured['steps']} steps at each of five" in said
    assert len(alone) == 5 and measured["pooled"]["n"] == 39


def test_surface_metrics() -> None:
    measured, said = result("surface_metrics"), row("HD95 and NSD")
    seconds = measured["cpu_seconds"]
    assert f"| {seconds['ours_hd95_and_nsd']:.3f} s |" in said
    assert f"MONAI: {seconds['monai_hd95'] + seconds['monai_nsd']:.2f} s" in said
    assert measured["largest_difference"]["hd95_mm"] < 2e-7 and "2e-7 mm" in said
    assert f"{measured['labels']} labels at {measured['shape'][0]}³" in said


def test_vessel_topology() -> None:
    measured, said = result("vessel_topology"), row("retinal vessels")
    plain, ours = measured["means"]["Dice and cross-entropy"], measured["means"]["with topology"]
    assert f"Betti error {ours['betti_error']:.1f} an eye, Dice {ours['dice']:.3f}" in said
    assert f"{plain['betti_error']:.1f} and {plain['dice']:.3f}" in said
    assert measured["met"] and measured["budget_s"] == 600
    assert len(measured["rows"]["with topology"]) == 3


def test_predict_ct() -> None:
    measured, said = result("predict_ct"), row("a CT of 512×512×300")
    ours, peer = measured["ours"], measured["peer"]
    assert f"| {ours['seconds']:.0f} s, {ours['peak_gib']:.1f} GiB |" in said
    assert f"{peer['seconds']:.0f} s, {peer['peak_gib']:.1f} GiB" in said
    assert f"{100 * measured['labels_equal']:.4f} % of labels equal" in said
    assert measured["shape"] == [300, 512, 512] and f"{measured['classes']} classes" in said
    assert f"{measured['cores']} CPU cores" in said


def test_consent() -> None:
    said = (PROJECT / "docs" / "howto" / "consent.md").read_text(encoding="utf-8")
    said = " ".join(said.split())
    store, cost = result("consent"), result("unlearn_cost")
    assert f"{store['patients']:,} patients and {store['changes']:,} changes" in said
    assert f"{100 * store['training']['share']['cpu']:.2f} % of the CPU time" in said
    assert f"two epochs of {store['training']['cases']} cases" in said
    assert (
        store["met"] and store["training"]["epochs"] == 2 and store["training"]["withdrawals"] == 1
    )
    assert store["store"]["wrong"] == 0 and sum(store["store"]["answers"].values()) > 1000
    ratio, quality = cost["ratio"], cost["quality"]
    assert f"{ratio['steps']:.3f} of the steps and {ratio['cpu_s']:.2f} of the CPU" in said
    assert cost["met"] and cost["same_bits"] == "8 of 8 shards"
    assert f"Eight shards of {cost['cases'] - quality['held_out_cases']} hippocampi" in said
    assert f"With {cost['steps_a_shard']} steps each" in said
    assert f"(Dice {quality['shards_averaged']:.2f})" in said
    assert f"all {quality['steps_in_all']} reached {quality['one_network']:.2f}" in said

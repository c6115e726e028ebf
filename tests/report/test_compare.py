"""Comparison: rows equal scipy's tests on the paired cases, and nothing is claimed beyond them."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qinjing.config import write_json
from qinjing.errors import ConfigError, FormatError, InputError
from qinjing.report.compare import _compare, compare, compare_files
from qinjing.report.runs import Run, _mean


def table(dice, hd=None, *, ids=None, patients=None, tolerance=1.0, labels=("liver", "spleen")):
    """A metrics.json with the given (cases, labels) of Dice and HD95."""
    dice = np.asarray(dice, dtype=float)
    hd = dice * 0 + 2 if hd is None else np.asarray(hd, dtype=float)
    ids = ids or [f"case_{k}" for k in range(len(dice))]
    patients = patients or ids

    def plain(value):
        return float(value) if np.isfinite(value) else None

    return {
        "labels": {str(k + 1): name for k, name in enumerate(labels)},
        "tolerance_mm": tolerance,
        "cases": [
            {
                "case_id": case_id,
                "patient_id": patient,
                "labels": {
                    str(k + 1): {
                        "dice": plain(d),
                        "hd95_mm": plain(h),
                        "nsd": plain(d),
                        "volume_error_ml": plain(d - 0.8),
                    }
                    for k, (d, h) in enumerate(zip(ds, hs, strict=True))
                },
                "ece": 0.1,
            }
            for case_id, patient, ds, hs in zip(ids, patients, dice, hd, strict=True)
        ],
    }


def write(folder, **tables):
    paths = []
    for name, content in tables.items():
        paths.append(folder / name / "metrics.json")
        write_json(paths[-1], content)
    return paths


def row(result, metric, label, run=None):
    found = [r for r in result["rows"] if (r["metric"], r["label"]) == (metric, label)]
    found = [r for r in found if run is None or r["run"] == run]
    assert len(found) == 1
    return found[0]


@pytest.fixture
def scores():
    rng = np.random.default_rng(0)
    first = rng.uniform(0.6, 0.9, (20, 2))
    return first, first + rng.normal((0.04, 0.0), 0.02, (20, 2))


def test_rows_equal_scipy_and_statsmodels(tmp_path, scores):
    stats = pytest.importorskip("scipy.stats")
    first, second = scores
    result = compare(write(tmp_path, base=table(first), new=table(second)))
    assert result["baseline"] == "base" and {r["run"] for r in result["rows"]} == {"new"}
    for label, one, other in (
        ("1", first[:, 0], second[:, 0]),
        ("2", first[:, 1], second[:, 1]),
        ("foreground", first.mean(axis=1), second.mean(axis=1)),
    ):
        found = row(result, "dice", label)
        assert found["n"] == 20 and found["left_out"] == 0
        assert found["baseline_mean"]["mean"] == pytest.approx(one.mean())
        assert found["run_mean"]["mean"] == pytest.approx(other.mean())
        assert found["difference"]["mean"] == pytest.approx((other - one).mean())
        assert found["difference"]["low"] < (other - one).mean() < found["difference"]["high"]
        assert found["t_p"] == pytest.approx(stats.ttest_rel(other, one).pvalue)
        assert found["wilcoxon_p"] == pytest.approx(stats.wilcoxon(other - one).pvalue)
    error = row(result, "volume_error_ml", "1")
    assert error["run_mean"]["mean"] == pytest.approx(np.abs(second[:, 0] - 0.8).mean())
    assert row(result, "dice", "1")["verdict"] == "better"
    assert row(result, "dice", "2")["verdict"] == "no difference shown"
    assert row(result, "hd95_mm", "1")["verdict"] == "no difference shown"
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    for test in ("t_p", "wilcoxon_p"):
        first_question = row(result, "dice", "foreground")
        assert first_question[f"{test}_holm"] == first_question[test]  # alone in its family
        rest = [r for r in result["rows"] if r is not first_question]
        corrected = multitest.multipletests([r[test] for r in rest], method="holm")[1]
        np.testing.assert_allclose([r[f"{test}_holm"] for r in rest], corrected)


def test_lower_is_better_for_distances(tmp_path, scores):
    first, _ = scores
    hd = np.full((20, 2), 3.0)
    better = hd - np.linspace(0.5, 1.5, 40).reshape(20, 2)
    paths = write(tmp_path, base=table(first, hd), new=table(first, better))
    assert row(compare(paths), "hd95_mm", "1")["verdict"] == "better"
    assert row(compare(paths[::-1]), "hd95_mm", "1")["verdict"] == "worse"
    assert row(compare(paths), "dice", "1")["verdict"] == "no difference shown"


def test_few_pairs_claim_nothing(tmp_path):
    first = np.full((5, 2), 0.1)
    result = compare(write(tmp_path, base=table(first), new=table(first + 0.8)))
    assert {r["verdict"] for r in result["rows"]} == {"too few to test"}
    assert all(r["t_p"] is None and r["wilcoxon_p_holm"] is None for r in result["rows"])
    assert row(result, "dice", "1")["difference"]["mean"] == pytest.approx(0.8)
    # twelve scans of four patients are four
    scans = np.linspace(0.1, 0.2, 24).reshape(12, 2)
    patients = [f"p{k // 3}" for k in range(12)]
    result = compare(write(
        tmp_path, base=table(scans, patients=patients), new=table(scans + 0.5, patients=patients)
    ))  # fmt: skip
    assert row(result, "dice", "1")["n"] == 12
    assert row(result, "dice", "1")["verdict"] == "too few to test"


def test_only_shared_cases_are_paired_and_the_others_listed(tmp_path, scores):
    first, second = scores
    ids = [f"case_{k}" for k in range(20)]
    order = list(range(19, 4, -1))  # another order, five missing, one more
    other = table(np.vstack([second[order], [[0.5, 0.5]]]), ids=[ids[k] for k in order] + ["more"])
    result = compare(write(tmp_path, base=table(first), new=other))
    assert row(result, "dice", "1")["n"] == 15
    expected = (second[5:, 0] - first[5:, 0]).mean()
    assert row(result, "dice", "1")["difference"]["mean"] == pytest.approx(expected)
    lonely = {(u["case_id"], u["only_in"]) for u in result["unpaired"]}
    assert lonely == {(f"case_{k}", "base") for k in range(5)} | {("more", "new")}


def test_undefined_values_leave_their_pair_out(tmp_path, scores):
    first, second = scores
    hd = np.full((20, 2), 3.0)
    missed = hd.copy()
    missed[:4, 0] = np.nan
    first = first.copy()
    first[7, 1] = np.nan  # this organ is not in this case
    result = compare(write(tmp_path, base=table(first, hd), new=table(second, missed)))
    assert (row(result, "hd95_mm", "1")["n"], row(result, "hd95_mm", "1")["left_out"]) == (16, 4)
    assert row(result, "hd95_mm", "foreground")["n"] == 20
    assert row(result, "dice", "2")["n"] == 19
    both = np.nanmean(np.where(np.isfinite(first), second - first, np.nan), axis=1)
    found = row(result, "dice", "foreground")["difference"]["mean"]
    assert found == pytest.approx(both.mean())


def test_a_missed_label_is_counted_beside_the_distance_that_it_is_not_in(tmp_path, scores):
    """Without its worst label, a method's mean distance is better than it is."""
    first, second = scores
    hd = np.full((20, 2), 3.0)
    missed = hd - 0.5
    missed[:, 1] = np.nan
    paths = write(tmp_path, base=table(first, hd), new=table(second, missed))
    result = compare_files(paths, tmp_path / "out")
    found = row(result, "hd95_mm", "foreground")
    assert (found["n"], found["left_out"], found["partly"]) == (20, 0, 20)
    assert row(result, "hd95_mm", "1")["partly"] == 0
    assert row(result, "dice", "foreground")["partly"] == 0
    assert "partly" in result["conventions"]
    page = (tmp_path / "out" / "comparison.html").read_text(encoding="utf-8")
    assert "20 (20 partly)" in page
    assert "<caption>HD95 (mm), lower is better. k partly: in k pairs" in page
    assert "<caption>Dice, higher is better</caption>" in page
    markdown = (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8")
    assert "20 (20 partly)" in markdown and "k partly: in k pairs" in markdown


@pytest.mark.parametrize(("empty", "partly"), [("both", 0), ("prediction", 3)])
def test_a_label_that_both_miss_counts_and_one_that_is_not_there_does_not(
    tmp_path, scores, empty, partly
):
    first, second = scores
    hd = np.full((20, 2), 3.0)
    hd[:3, 1] = np.nan
    tables = [table(first, hd), table(second, hd)]
    for content in tables:
        for case in content["cases"][:3]:
            case["labels"]["2"]["empty"] = empty
    result = compare(write(tmp_path, base=tables[0], new=tables[1]))
    assert row(result, "hd95_mm", "foreground")["partly"] == partly


def test_files_are_written_whole_and_say_the_same(tmp_path, scores):
    first, second = scores
    paths = write(tmp_path, base=table(first), new=table(second), third=table(second - 0.2))
    result = compare_files(paths, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "comparison-contributions.png",
        *(f"comparison.{end}" for end in ("csv", "html", "json", "md", "png")),
    ]
    written = json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(result))
    with (tmp_path / "out" / "comparison.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(result["rows"])
    for line, found in zip(lines, result["rows"], strict=True):
        assert float(line["difference_mean"]) == found["difference"]["mean"]
        assert line["verdict"] == found["verdict"]
    markdown = (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8")
    found = row(result, "dice", "foreground", "new")
    assert f"+{found['difference']['mean']:.4f}" in markdown
    page = (tmp_path / "out" / "comparison.html").read_text(encoding="utf-8")
    assert f"+{found['difference']['mean']:.4f}" in page and "worse" in page
    assert not re.search(r'(?:src|href)="(?!data:|#)', page) and "<script" not in page
    assert (tmp_path / "out" / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_pictures_are_told_apart_in_words(tmp_path, scores):
    first, second = scores
    hd = np.full((20, 2), 3.0)
    nearer = hd - np.linspace(0.5, 1.5, 40).reshape(20, 2)
    nearer[:2] = 3.0
    nearer[2:5] = 9.0
    paths = write(tmp_path, method=table(first, hd), less=table(second, nearer))
    result = compare_files(paths, tmp_path / "out")
    page = (tmp_path / "out" / "comparison.html").read_text(encoding="utf-8")
    bars, points = re.findall(r'<img class="picture" [^>]*alt="([^"]*)"', page)
    dice, far = (row(result, metric, "foreground") for metric in ("dice", "hd95_mm"))
    assert f"less, Dice: +{dice['difference']['mean']:.4f}" in bars and dice["verdict"] in bars
    assert "less, HD95 in mm: " in bars and bars.endswith(far["verdict"])
    better = int((second.mean(1) > first.mean(1)).sum())
    assert f"less, Dice: {better} better, {20 - better} worse, 0 equal" in points
    assert "less, HD95 in mm: 15 better, 3 worse, 2 equal" in points
    # In an ablation the baseline itself is called "method".
    header = page.split('<th scope="col">Label</th>')[1].split("</tr>")[0]
    assert "baseline</th>" in header and "run</th>" in header and "method" not in header
    caption = re.search(r"<figcaption><p>Run − baseline over all labels.*?</p>", page)
    other = ("no difference shown", "too few to test", "spread of seeds", "mean and ranks disagree")
    assert caption is not None and all(words in caption[0] for words in other)


def test_names_cannot_break_the_pages(tmp_path, scores):
    first, second = scores
    labels = ("<b>liver</b>|", "$x$ =1+1")
    paths = write(tmp_path, base=table(first, labels=labels), new=table(second, labels=labels))
    compare_files(paths, tmp_path / "out")
    page = (tmp_path / "out" / "comparison.html").read_text(encoding="utf-8")
    assert "<b>" not in page and "&lt;b&gt;liver" in page
    assert "<b>liver" not in (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8")


def test_folds_of_a_run_are_taken_together(tmp_path, scores):
    first, second = scores
    for name, values in (("small", first), ("large", second)):
        for fold in range(2):
            part = slice(10 * fold, 10 * fold + 10)
            ids = [f"case_{k}" for k in range(20)][part]
            write_json(
                tmp_path / name / f"fold_{fold}" / "metrics.json", table(values[part], ids=ids)
            )
    result = compare([tmp_path / "small", tmp_path / "large"])
    assert [r["name"] for r in result["runs"]] == ["small", "large"]
    assert row(result, "dice", "1")["n"] == 20
    folds = compare([tmp_path / name / "fold_0" / "metrics.json" for name in ("small", "large")])
    assert [r["name"] for r in folds["runs"]] == ["small/fold_0", "large/fold_0"]


def test_another_tolerance_or_label_is_left_out_and_said(tmp_path, scores):
    first, second = scores
    other = table(second, tolerance=2.0)
    other["labels"] = {"1": "liver"}
    result = compare(write(tmp_path, base=table(first), new=other))
    assert result["labels"] == {"1": "liver"}
    assert "nsd" not in {r["metric"] for r in result["rows"]}
    assert any("2 (spleen)" in note for note in result["notes"])
    assert any("tolerance is 2.0 mm" in note for note in result["notes"])


def test_refusals(tmp_path, scores):
    first, second = scores
    base, new = write(tmp_path, base=table(first), new=table(second))
    with pytest.raises(InputError, match="two or more"):
        compare([base])
    with pytest.raises(InputError, match="different files"):
        compare([base, base])
    with pytest.raises(FormatError, match="file must be there"):
        compare([base, tmp_path / "none.json"])
    bad = tmp_path / "bad.json"
    for content in (
        [], {}, {"labels": {}, "cases": [3]}, {"labels": {}, "cases": {}},
        {"labels": {}, "cases": [{"case_id": "a", "labels": {"1": 3}}]},
        {"labels": {}, "cases": [{"case_id": 3, "labels": {}}]},
        {"labels": {}, "cases": [{"case_id": "a", "labels": {}}] * 2},
    ):  # fmt: skip
        write_json(bad, content)
        with pytest.raises(FormatError):
            compare([base, bad])
        result = compare([base, new, bad])  # the rest goes on
        assert [r["case_id"] for r in result["refused"]] == [str(bad)]
    words = table(second)
    words["cases"][3]["labels"]["1"]["dice"] = 10**400  # JSON knows no bound
    write_json(bad, words)
    with pytest.raises(FormatError, match="dice of case_3 must be a number or null"):
        compare([base, bad])
    words["cases"][3]["labels"]["1"]["dice"] = "high"
    write_json(bad, words)
    with pytest.raises(FormatError, match="dice of case_3 must be a number or null"):
        compare([base, bad])
    write_json(bad, table(second, ids=[f"other_{k}" for k in range(20)]))
    with pytest.raises(InputError, match="common case"):
        compare([base, bad])
    write_json(bad, {**table(second), "labels": {"9": "x"}})
    with pytest.raises(InputError, match="common label"):
        compare([base, bad])
    with pytest.raises(ConfigError, match="output must be a folder"):
        compare_files([base, tmp_path / "none.json"], bad)  # said before anything is compared
    with pytest.raises(FormatError):
        compare_files([base, tmp_path / "none.json"], tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_damaged_tables_are_refused_in_words(tmp_path, scores):
    """Cut or altered bytes give a comparison or an InputError, never another error."""
    first, second = scores
    base, new = write(tmp_path, base=table(first[:7]), new=table(second[:7]))
    good = new.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        bad = bytearray(good)
        for _ in range(rng.integers(1, 4)):
            bad[rng.integers(len(bad))] = rng.integers(32, 127)
        new.write_bytes(bytes(bad[: rng.integers(1, len(bad))]) if rng.random() < 0.3 else bad)
        try:
            json.dumps(compare([base, new]), allow_nan=False)
        except InputError:
            refused += 1
    assert refused > 30


def of_seeds(name, shifts, rng, worth=0.0):
    """A method whose seeds each move all of 30 cases at once."""
    seeds = []
    for number, shift in enumerate(shifts):
        dice = 0.85 + worth + shift + rng.normal(0, 0.004, (30, 1))
        content = table(dice, labels=("liver",))
        cases = {case["case_id"]: case for case in content["cases"]}
        seeds.append(Run(f"{name}{number}", Path(name), content["labels"], 1.0, cases))
    return _mean(name, seeds)


def test_a_lucky_seed_is_no_better_method():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(1)
    first = of_seeds("first", (0.0, 0.008, -0.008), rng)
    second = of_seeds("second", (0.016, 0.004, -0.004), rng)
    found = row(_compare([first, second], []), "dice", "1")
    assert found["wilcoxon_p_holm"] < 0.001  # all cases are above, and it means nothing
    assert found["verdict"] == "within the spread of seeds"
    means = [
        [np.mean([c["labels"]["1"]["dice"] for c in s.cases.values()]) for s in run.seeds]
        for run in (first, second)
    ]
    assert found["seeds_p"] == pytest.approx(stats.ttest_ind(*means, equal_var=False).pvalue)
    third = of_seeds("third", (0.016, 0.004, -0.004), rng, worth=0.05)
    found = row(_compare([first, third], []), "dice", "1")
    assert found["verdict"] == "better" and found["seeds_p"] < 0.05


def test_cases_that_one_seed_lacks_are_named():
    rng = np.random.default_rng(1)
    first, second = (of_seeds(name, (0.0, 0.001), rng) for name in ("first", "second"))
    cases = {k: v for k, v in second.seeds[1].cases.items() if k not in ("case_3", "case_7")}
    second = _mean("second", [second.seeds[0], replace(second.seeds[1], cases=cases)])
    result = _compare([first, second], [])
    assert len(second.cases) == 28 and not result["unpaired"]
    assert result["notes"] == [
        "Cases that a seed of second lacks were left out: case_3 (second1), case_7 (second1)."
    ]


def test_labels_without_a_distance_are_counted_beside_it(tmp_path, scores):
    first, second = (table(one) for one in scores)
    for number in (2, 5, 6):
        second["cases"][number]["labels"]["1"] |= {"hd95_mm": None, "empty": "prediction"}
    paths = write(tmp_path, base=first, new=second)
    assert [one["missed"] for one in compare(paths)["costs"]] == [0, 3]
    compare_files(paths, tmp_path / "out")
    assert "(3 missed)" in (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8")


def test_a_folder_without_metrics_is_refused_with_advice(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=r"a run, or one with a metrics.json, got neither.*give"):
        compare([tmp_path / "a", tmp_path / "b"])


def test_seeds_are_compared_over_the_labels_that_all_of_them_have():
    rng = np.random.default_rng(1)
    first, second = (of_seeds(name, (0.0, 0.001, 0.002), rng) for name in ("first", "second"))
    whole = row(_compare([first, second], []), "hd95_mm", "foreground")
    assert whole["seeds_p"] == 1  # all distances are 2 mm
    spoilt = second.seeds[0]
    spoilt.cases["case_3"]["labels"]["1"]["hd95_mm"] = None
    for seed in (*first.seeds, *second.seeds[1:]):
        seed.cases["case_3"]["labels"]["1"]["hd95_mm"] = 50.0
    lacking = [_mean(run.name, run.seeds) for run in (first, second)]
    found = row(_compare(lacking, []), "hd95_mm", "foreground")
    assert found["n"] == 29 and found["seeds_p"] == 1

"""The page: self-contained, escaped, complete, and true to the numbers it was given."""

import base64
import json
import re
import shutil
import struct
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from qinjing.config import read_json, write_json
from qinjing.data.nifti import read_nifti, write_nifti
from qinjing.errors import ConfigError, FormatError
from qinjing.evidence import append, digested
from qinjing.physics.phantom import LABELS, write_dataset
from qinjing.report.baselines import against
from qinjing.report.compare import compare
from qinjing.report.html import choose_cases, duration, write_report
from qinjing.report.source import read_evaluated
from qinjing.report.tables import case_rows
from qinjing.tasks.evaluate import evaluate_files

FOREGROUND = [value for value in LABELS if value]


def write_metrics(folder: Path, dataset: Path, shifts: dict[str, int]) -> Path:
    """Shift each truth by some voxels, call that a prediction, and measure it."""
    for case_id, shift in shifts.items():
        truth = read_nifti(dataset / "labelsTr" / f"{case_id}.nii.gz")
        guess = truth.with_voxels(np.roll(truth.voxels, shift, axis=2))
        write_nifti(folder / "validation" / f"{case_id}.nii.gz", guess)
    metrics = folder / "metrics.json"
    evaluate_files(folder / "validation", dataset, metrics, cases=shifts)
    content = read_json(metrics)
    assert not content["refused"]
    content["refused"] = [{"case_id": "broken_1", "reason": "file must be complete"}]
    write_json(metrics, content)
    return metrics


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("phantoms"), cases=6, seed=3)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, phantoms):
    """A run folder as training and evaluation leave it."""
    run = tmp_path_factory.mktemp("finished") / "run"
    names = [f"phantom_{i:03d}" for i in range(6)]
    write_metrics(run / "fold_0", phantoms, dict(zip(names, (1, 4, 0, 2, 3, 1), strict=True)))
    write_json(run / "dataset.json", {"name": "Phantom", "root": str(phantoms)})
    write_json(run / "fingerprint.json", {"cases": 6, "spacing_mm": [1.5, 1.75, 1.75]})
    write_json(
        run / "plan.json",
        {
            "patch_size": [32, 64, 64],
            "predicted": {
                "step_s": 0.2,
                "training_s": 300.0,
                "training_memory_gib": 2.0,
                "predicting_s": 0.5,
            },
        },
    )
    write_json(
        run / "measured.json",
        {
            "step_s": 0.25,
            "training_s": 330.0,
            "training_memory_gib": 1.8,
            "environment": {"torch": "2.13.0", "threads": 1},
        },
    )
    write_json(run / "run.json", {"seed": 5})
    write_json(run / "splits_final.json", [{"train": names[2:], "val": names[:2]}])
    lines = [{"kind": "note", "text": "precision fp32"}]
    for step in range(1, 61):
        lines.append(
            {"kind": "step", "step": step, "loss": 2 / step, "lr": 1e-3, "seconds": 0.25 * step}
        )
        if step % 20 == 0:
            dice = {f"dice_{v}": 1 - 1 / (step / 5 + v) for v in FOREGROUND}
            score = float(np.mean(list(dice.values())))
            lines.append({"kind": "validation", "step": step, **dice, "score": score})
    text = "\n".join(json.dumps(line) for line in lines) + '\n{"kind": "st'
    (run / "fold_0" / "log.jsonl").write_text(text)
    return run


@pytest.fixture
def run(finished, tmp_path):
    """A copy to change, which shows no pictures: its data set is not where it was."""
    shutil.copytree(finished, tmp_path / "run")
    path = tmp_path / "run" / "fold_0" / "metrics.json"
    write_json(path, {**read_json(path), "references": "/gone"})
    write_json(tmp_path / "run" / "dataset.json", {"name": "Phantom", "root": "/gone"})
    return tmp_path / "run"


@pytest.fixture(scope="module")
def whole(finished, phantoms, tmp_path_factory):
    """Result, text and page of the finished run."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("whole")
        patch.setenv("QINJING_EVIDENCE_KEY", str(folder / "key.pem"))
        read = digested({"dataset": phantoms})
        append(finished, "train", read, [finished / "fold_0"], {"seed": 5})
        return report(finished, folder)


class Page(HTMLParser):
    """What a browser would fetch, and whether the page is well formed."""

    VOID = ("meta", "img", "source", "br", "link", "input")

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def report(source, tmp_path, **options):
    output = tmp_path / "report.html"
    result = write_report(source, output, **options)
    text = output.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert result["bytes"] == output.stat().st_size < 10_000_000
    return result, text, page


def test_a_run_gives_a_whole_page(finished, whole):
    result, _text, page = whole
    metrics = read_json(finished / "fold_0" / "metrics.json")
    mean = metrics["mean"]["foreground"]["dice"]
    assert result["mean_dice"] == pytest.approx(mean["mean"])
    assert (result["cases"], result["pictures"]) == (6, 5)
    assert result["notes"] == []
    assert [a["id"] for a in page.all("section")] == [
        "results", "pictures", "cases", "refused", "training", "plan", "splits", "environment",
        "evidence",
    ]  # fmt: skip
    for expected in (
        f"{mean['mean']:.3f}", f"95 % CI {mean['low']:.3f} to {mean['high']:.3f}", "Phantom",
        "Research use only", "liver", "lesion", "HD95 (mm)", "NSD at 1 mm", "broken_1",
        "file must be complete", "Worst: phantom_001", "Best: phantom_002", "2.13.0",
        "1 signed statement, all verified", "Training one fold 5 min 00 s 5 min 30 s 1.10",
        "One training step 0.200 s 0.250 s 1.25", "Peak memory of training 2.00 GiB 1.80 GiB 0.90",
        "Predicting one case 0.500 s – –",
    ):  # fmt: skip
        assert expected in page.text, expected
    assert len(page.all("h1")) == 1


def test_the_page_fetches_nothing_and_runs_nothing(whole):
    _, text, page = whole
    assert not page.all("script") and not page.all("link") and not page.all("iframe")
    for _, attrs in page.tags:
        assert not any(name.startswith("on") for name in attrs)
        for name in ("src", "srcset", "href"):
            if name in attrs:
                assert attrs[name].startswith(("data:image/png;base64,", "#"))
    assert "url(" not in text and "@import" not in text and "://" not in text


def test_every_picture_says_what_it_shows_and_has_its_size(whole):
    _, _, page = whole
    images = page.all("img")
    assert len(images) == 6  # five cases and the curves
    for attrs in images:
        png = base64.b64decode(attrs["src"].split(",", 1)[1])
        width, height = struct.unpack(">II", png[16:24])
        assert (attrs["width"], attrs["height"]) == (str(width), str(height))
        assert len(attrs["alt"]) > 60
    assert "through the lesion" in images[0]["alt"]
    dark = [a for a in page.all("source") if "prefers-color-scheme: dark" in a["media"]]
    assert len(dark) == 1 and dark[0]["srcset"] != images[-1]["src"]


def test_cases_stand_worst_first(finished, whole):
    _, _, page = whole
    metrics = read_json(finished / "fold_0" / "metrics.json")
    means = {
        c["case_id"]: np.mean([c["labels"][str(v)]["dice"] for v in FOREGROUND])
        for c in metrics["cases"]
    }
    expected = sorted(means, key=lambda case_id: (means[case_id], case_id))
    table = page.text[page.text.index("Cases, worst first") :]
    assert re.findall(r"phantom_\d{3}", table)[:6] == expected
    assert expected[0] == "phantom_001" and expected[-1] == "phantom_002"


def test_names_from_outside_are_escaped(run, tmp_path):
    metrics = read_json(run / "fold_0" / "metrics.json")
    metrics["labels"]["1"] = "<script>alert(1)</script>"
    metrics["cases"][0]["case_id"] = "<img src=x onerror=alert(2)>"
    write_json(run / "fold_0" / "metrics.json", metrics)
    write_json(run / "run.json", {"command": "<b>$x_1$</b>", "python": "/home/name/bin/python"})
    _, text, page = report(run, tmp_path)
    assert not page.all("script") and "<img src=x" not in text and not page.all("b")
    assert "<script>alert(1)</script>" in page.text
    assert "/home/name" not in text


def test_a_metrics_file_alone_gives_tables_and_says_what_is_missing(run, tmp_path):
    lonely = tmp_path / "elsewhere" / "metrics.json"
    lonely.parent.mkdir()
    lonely.write_bytes((run / "fold_0" / "metrics.json").read_bytes())
    result, _, page = report(lonely, tmp_path)
    assert result["pictures"] == 0
    assert [a["id"] for a in page.all("section")] == ["results", "cases", "refused", "notes"]
    assert "No pictures" in page.text


def test_a_data_set_and_a_run_can_be_named_beside_a_metrics_file(run, phantoms, tmp_path):
    result, _, page = report(run / "fold_0" / "metrics.json", tmp_path, run=run, dataset=phantoms)
    assert result["pictures"] == 5
    assert "training" in [a["id"] for a in page.all("section")]


def test_baselines_stand_beside_ours_and_the_sign_speaks_of_ours(run, phantoms, tmp_path):
    names = [f"phantom_{i:03d}" for i in range(6)]
    far = write_metrics(tmp_path / "far", phantoms, dict.fromkeys(names, 6))
    same = run / "fold_0" / "metrics.json"
    copy = tmp_path / "same" / "metrics.json"
    copy.parent.mkdir()
    copy.write_bytes(same.read_bytes())
    _, _, page = report(run, tmp_path, baselines={"six <off>": far.parent, "the same": copy})
    ours = read_json(same)["mean"]["foreground"]["dice"]["mean"]
    theirs = read_json(far)["mean"]["foreground"]["dice"]["mean"]
    section = page.text[page.text.index("Against baselines") :]
    assert f"six <off> Dice all labels {ours:.3f} {theirs:.3f} +{ours - theirs:.3f}" in section
    assert f"the same Dice all labels {ours:.3f} {ours:.3f} +0.000" in section
    assert "the same HD95 (mm) all labels" in section[section.index("Every label and metric") :]
    # Six pairs all of one sign: Wilcoxon's exact p is 2/64, twice that among two baselines.
    assert " 0.062 " in section[section.index("six <off> Dice all") :][:90]
    _, _, page = report(run, tmp_path, baselines={"six <off>": far.parent})
    row = page.text[page.text.index("six <off> Dice all") :][:110]
    assert " 0.031 " in row and "6 better" in row
    # Every p and verdict is the one of `qinjing compare`, seen from our side.
    shown = against(read_json(same), run, {"six": far.parent}, {"six": read_evaluated(far)}, "us")
    rows = {(r["metric"], r["label"], r["name"]): r for r in compare([run, far.parent])["rows"]}
    turned = {"better": "worse", "worse": "better"}
    for cell in shown["comparisons"] + shown["further_comparisons"]:
        metric = {"Dice": "dice", "HD95 (mm)": "hd95_mm"}.get(cell["metric"])
        name = "foreground" if cell["label"] == "all labels" else cell["label"]
        for row in (r for k, r in rows.items() if (k[0], k[2]) == (metric, name)):
            p = row["wilcoxon_p_holm"]
            assert cell["wilcoxon"] == ("< 0.001" if p < 0.001 else f"{p:.3f}")
            assert cell["verdict"] == turned.get(row["verdict"], row["verdict"])
    assert "over all rows of the comparison" in page.text
    # Tables without a common case are said to be so, and the page is written all the same.
    other = read_json(far)
    for case in other["cases"]:
        case["case_id"] += "_other"
    write_json(far, other)
    _, _, page = report(run, tmp_path, baselines={"other cases": far})
    assert "Not compared: tables must be of a common case" in page.text


def test_references_without_a_prediction_are_named(run, tmp_path):
    path = run / "fold_0" / "metrics.json"
    metrics = read_json(path)
    names = [f"case_{n:02d}" for n in range(12)]
    write_json(path, {**metrics, "unpredicted": names})
    _, _, page = report(run, tmp_path)
    section = page.text[page.text.index("Refused cases") :]
    assert "12 references had no prediction" in section
    assert "case_09, …" in section and "case_10" not in section
    write_json(path, {**metrics, "refused": [], "unpredicted": names[:1]})
    _, _, page = report(run, tmp_path)
    assert "Refused cases" not in page.text
    assert "1 reference had no prediction" in page.text
    write_json(path, {**metrics, "unpredicted": []})
    _, _, page = report(run, tmp_path)
    assert "had no prediction" not in page.text


def test_a_folder_as_output_is_refused(run, tmp_path):
    with pytest.raises(ConfigError, match="output must be a file"):
        write_report(run, tmp_path)


def test_values_that_are_not_defined_are_dashes(run, tmp_path):
    path = run / "fold_0" / "metrics.json"
    metrics = read_json(path)
    for entry in metrics["cases"][0]["labels"].values():
        entry.update(dict.fromkeys(entry))
    metrics["cases"][0]["foreground"]["dice"] = None
    metrics["mean"]["5"]["hd95_mm"] = {"mean": None, "low": None, "high": None, "n": 0}
    write_json(path, metrics)
    _, _, page = report(run, tmp_path)
    assert "None" not in page.text and "nan" not in page.text
    assert "–" in page.text
    _, rows = case_rows(metrics)
    assert rows[0].mean_dice is None
    assert next(row.case_id for _, row in choose_cases(rows)) != rows[0].case_id


def test_folds_without_an_evaluation_still_show_their_curves(run, tmp_path):
    (run / "fold_0" / "metrics.json").unlink()
    result, _, page = report(run, tmp_path)
    assert result["mean_dice"] is None and result["cases"] == 0
    assert "no evaluated cases" in page.text
    assert "training" in [a["id"] for a in page.all("section")]


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"cases": 3}', '{"cases": [7]}', '{"cases": [{}]}']
)
def test_other_json_is_refused(tmp_path, content):
    path = tmp_path / "metrics.json"
    path.write_text(content)
    with pytest.raises(FormatError):
        write_report(path, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_place_with_nothing_to_report_is_refused(tmp_path):
    with pytest.raises(FormatError, match=r"run folder or a metrics\.json"):
        write_report(tmp_path / "nowhere", tmp_path / "report.html")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FormatError, match=r"run folder or a metrics\.json"):
        write_report(tmp_path / "empty", tmp_path / "report.html")


def test_times_are_printed_for_people():
    assert [duration(s) for s in (0.04, 41.2, 200, 7500)] == [
        "0.0 s", "41 s", "3 min 20 s", "2 h 05 min",
    ]  # fmt: skip

"""The command line: fixed words, exit codes, a sentence for people, an object for machines."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pytest

import qinjing
from qinjing import cli
from qinjing.cli.arguments import Command, argument, parse, seconds
from qinjing.cli.commands import COMMANDS
from qinjing.cli.show import table
from qinjing.config import plain
from qinjing.errors import ConfigError, InputError

FIXED_WORDS = [
    "data check -i D",
    "data fetch Task04_Hippocampus -o F",
    "data split -i D -o splits_final.json --folds 5 --seed 1",
    "data split -i D -o splits_final.json --shards 8",
    "data dicom -i D -o F",
    "data deidentify -i D -o F --secret S --keep dates descriptors",
    "plan -i D -o plan.json --budget 10m",
    "train -i D -o RUN --budget 14m --fold all --net N --loss L --seed 3 --resume",
    "train -i D -o RUN --fold 2",
    "train -i D -o RUN --trunk T --tune lora --layer-decay 0.8 --unlabelled-weight 1",
    "pretrain -i D E -o T --budget 10m --clustering kmeans --without planes masking --resume",
    "export -m RUN -o F",
    "export dicom -i seg.nii.gz --source F -o O --labels L --as seg rtstruct sr --kind labelmap",
    "unlearn RUN case_1 -i D",
    "federate simulate -i D -o F --sites 5 --strategy ditto --codec spectral --liars 1",
    "federate simulate -i D -o F --combine median --secure --rounds 30 --steps 10 --alone",
    "federate provision -o F --name lung --host here --port 8443",
    "federate request invitation.json --site north -i D -o F --policy policy.json",
    "federate approve a.json b.json -p F",
    "federate join signed.json -o F",
    "federate coordinate -p F -o RUN --sites 3 --rounds 30 --strategy fedbn --deadline 600",
    "consent import a.json b.ndjson --by desk",
    "consent export -o F --version R5",
    "consent grant p1 --purpose research federated --from 2026-01-01 --until 2027 --by desk",
    "consent withdraw p1 --purpose research --by desk",
    "consent show --patient p1",
    "consent verify --head a b",
    "consent affected case_1 -i runs trunks",
    "serve --consents S --port 0 --tls-cert C --tls-key K --runs runs trunks --datasets D",
    "serve -o F -m RUN --dicom-port 104 --callers PACS --send-to PACS@h:104 --catalogue URL",
    "serve token --role patient --patient p1 --name desk --days 7 --consents S --tokens T",
    "serve token --role annotator --name Li -o F",
    "serve tokens --consents S",
    "serve revoke 1a2b3c4d --tokens T",
    "serve node -o F --do predict --ae-title QJ --host h --port 0 --callers PACS --quiet 10",
    "serve work -o F --do predict release -m RUN RUN2 --send-to PACS@h:104",
    "serve -o F --watch drop --send-to out --login L --ca C --oidc oidc.json",
    "serve node -o F --do predict --watch drop --callers PACS@h:104",
    "serve work -o F --do predict -m RUN --send-to https://pacs/dicom-web --login L --ca C",
    "serve fetch https://pacs/dicom-web -o F --modality CT --dates 20260101- --do predict",
    "serve fetch https://pacs/dicom-web -o F --description liver --login L --ca C --catalogue URL",
    "serve worklist https://ris/ups -o F --pacs https://pacs/dicom-web --label LIVER --station QJ1",
    "serve declare -m RUN --modality CT --class tool --name N --use U --limits A B --slices 3",
    "probe -i D --trunk T -o probe.json",
    "predict -m RUN -i case.nii.gz -o F --flips --confidence",
    "evaluate -i P -r L -o metrics.json --tolerance-mm 1",
    "compare a/metrics.json b/metrics.json -o F",
    "ablate method -i D -o SET --budget 5m --seeds 3",
    "label-curve -i D -o F --trunk T --labelled 1 2 0 --seeds 5 --steps 600 --methods random both",
    "select -i D -o next.json -n 5 --trunk T --labelled a b",
    "report RUN -o report.html",
    "report-case -i I -s S --labels L -o F --before B --class analysis --language zh",
    "dossier -m RUN -o F --metrics M N --service S --key K",
    "verify F",
    "info",
    "phantom -o F --cases 24 --seed 0",
    "demo",
    "demo -i D -o demo",
]


@pytest.fixture(autouse=True)
def own_key(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path_factory.mktemp("key") / "key.pem"
    monkeypatch.setenv("QINJING_EVIDENCE_KEY", str(path))
    return path


def run(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "qinjing", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


@dataclass(frozen=True)
class Doing(Command):
    """A command that does what the test gives it."""

    output: Path = field(metadata=argument("-o", "--output", metavar="O", help="folder"))
    do: Callable[[], Mapping[str, Any]] = field(default=dict, metadata=argument("--do", help="-"))

    def run(self) -> dict[str, Any]:
        return dict(self.do())

    def text(self, result: Mapping[str, Any]) -> str:
        return f"text of {sorted(result)}"

    def refusals(self, result: Mapping[str, Any]) -> list[str]:
        return list(result.get("refused", ()))

    def after_stop(self) -> str:
        return "it resumes"


@pytest.fixture
def doing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run `main` on a command whose `run` is the function given."""

    def call(do: Callable[[], Any], *more: str) -> tuple[int, str, str]:
        monkeypatch.setattr(cli, "parse", lambda words, commands: Doing(tmp_path, do))
        code = cli.main(["doing", *more])
        return (code, *capsys.readouterr())

    return call


@pytest.mark.parametrize("line", FIXED_WORDS)
@pytest.mark.parametrize("as_json", [False, True])
def test_the_fixed_words_are_understood(line: str, as_json: bool) -> None:
    command = parse([*line.split(), *["--json"] * as_json], COMMANDS)
    name = " ".join(line.split()[:2])
    assert type(command) is COMMANDS.get(name, COMMANDS.get(line.split()[0]))


def test_every_command_is_among_the_fixed_words() -> None:
    assert all(any(line.startswith(name) for line in FIXED_WORDS) for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_argument_is_used(name: str) -> None:
    """An option that is read and then forgotten would be a silent lie."""
    run = inspect.getsource(COMMANDS[name].run)
    assert [item.name for item in fields(COMMANDS[name]) if f"self.{item.name}" not in run] == []


def test_values_reach_the_command() -> None:
    command: Any = parse(
        ["train", "-i", "D", "-o", "R", "--budget", "14m", "--fold", "all", "--seed", "3"], COMMANDS
    )
    assert (command.dataset, command.output) == (Path("D"), Path("R"))
    assert (command.budget_s, command.fold, command.seed) == (840.0, "all", 3)
    assert command.net is None and command.resume is False
    command = parse(["train", "-i", "D", "-o", "R", "--fold", "2", "--resume"], COMMANDS)
    assert command.fold == 2 and command.resume is True and command.budget_s is None
    command = parse(["compare", "a", "b", "c", "-o", "F"], COMMANDS)
    assert command.metrics == (Path("a"), Path("b"), Path("c"))


@pytest.mark.parametrize(
    ("text", "value"), [("90s", 90), ("14m", 840), ("2h", 7200), ("1.5h", 5400), ("0.5s", 0.5)]
)
def test_budgets(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize(
    "text", ["", "5", "m", "-1m", "0s", "10 minutes", "1d", "nanm", "infh", "1e99h", "１٣x", "5M"]
)
def test_budgets_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="90s, 14m or 2h"):
        seconds(text)


@pytest.mark.parametrize(
    "words",
    [
        [], ["data"], ["bogus"], ["data", "bogus"], ["train"], ["train", "-i"], ["info", "extra"],
        ["train", "-i", ".", "-o", "x", "--budget", "5"],
        ["train", "-i", ".", "-o", "x", "--fold", "-1"],
        ["train", "-i", ".", "-o", "x", "--fold", "1.5"],
        ["train", "-i", ".", "-o", "x", "--seed", "x"],
        ["train", "-i", "", "-o", "x"], ["train", "-i", "a\0b", "-o", "x"],
        ["train", "--bud", "5m"], ["train", "-i", "none", "-o", "x"],
        ["phantom", "-o", "x", "--cases", "0"], ["compare", "-o", "x"],
        ["data", "split", "-i", ".", "-o", "x", "--folds", "1"],
        ["evaluate", "-i", ".", "-r", ".", "-o", "x", "--tolerance-mm", "nan"],
        ["verify", "none"], ["verify", "."], ["compare", "none", "-o", "x"],
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_one_sentence(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("qinjing: ") and err.count("\n") == 1 and " must be " in err
    assert cli.main([*words, "--json"]) == 2
    out, _ = capsys.readouterr()
    assert set(json.loads(out)) == {"error"}
    assert list(tmp_path.iterdir()) == []


def test_a_result_is_text_or_one_object(doing: Callable[..., tuple[int, str, str]]) -> None:
    assert doing(lambda: {"a": 1}) == (0, "text of ['a']\n", "")

    def noisy() -> dict[str, Any]:
        print("a library talks")
        return {"path": Path("x"), "nan": float("nan"), "labels": {1: "liver"}}

    code, out, err = doing(noisy, "--json")
    assert code == 0 and err == "a library talks\n"
    assert json.loads(out) == {"path": "x", "nan": None, "labels": {"1": "liver"}}


def test_refusals_are_listed_and_make_the_exit_code(
    doing: Callable[..., tuple[int, str, str]],
) -> None:
    code, out, err = doing(lambda: {"done": 3, "refused": ["case_7: truncated"]}, "--json")
    assert code == 2 and json.loads(out)["done"] == 3
    assert err == "qinjing: case_7: truncated\n"


def test_our_failure_names_a_log_and_shows_no_traceback(
    doing: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("the sky\nfell")

    code, out, err = doing(fail, "--json")
    assert code == 1 and err.count("\n") == 1 and "Traceback" not in err
    assert json.loads(out)["error"] in err
    (log,) = tmp_path.glob("qinjing-failure-*.log")
    assert str(log) in err
    assert "Traceback" in log.read_text() and "the sky" in log.read_text()
    monkeypatch.setenv("QINJING_DEBUG", "1")
    with pytest.raises(RuntimeError):
        doing(fail)


def test_input_errors_and_refused_places_are_the_users(
    doing: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    def refuse() -> None:
        raise InputError("label", "declared", 7, where="case_3")

    assert doing(refuse) == (2, "", "qinjing: label must be declared, got 7 (case_3)\n")

    def write_below_a_file() -> None:
        (tmp_path / "file").write_text("")
        (tmp_path / "file" / "x").write_text("")

    code, _, err = doing(write_below_a_file)
    assert code == 2 and "file/x" in err and err.count("\n") == 1


def test_only_the_first_of_several_processes_speaks(
    doing: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("RANK", "1")
    assert doing(lambda: {"refused": ["one"]}) == (2, "", "")
    monkeypatch.setenv("RANK", "0")
    assert doing(lambda: {"refused": ["one"]}, "--json")[1:] == (
        '{"refused": ["one"]}\n',
        "qinjing: one\n",
    )


def test_ctrl_c_says_how_to_go_on(doing: Callable[..., tuple[int, str, str]]) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    assert doing(stop) == (130, "", "qinjing: stopped; it resumes\n")


def test_real_ctrl_c(tmp_path: Path) -> None:
    words = ["phantom", "-o", str(tmp_path / "data"), "--cases", "1000"]
    worker = subprocess.Popen(
        [sys.executable, "-m", "qinjing", *words],
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job, which the tests may be, passes an ignored SIGINT on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("data/imagesTr/phantom*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    worker.send_signal(signal.SIGINT)
    _, err = worker.communicate(timeout=60)
    assert worker.returncode == 130
    assert err.splitlines()[-1].startswith("qinjing: stopped") and "Traceback" not in err


def test_a_reader_that_goes_away_is_no_failure() -> None:
    read, write = os.pipe()
    os.close(read)
    worker = subprocess.run(
        [sys.executable, "-m", "qinjing", "--help"], stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    assert worker.stderr == "" and worker.returncode == 0


def test_train_says_that_the_checkpoint_resumes() -> None:
    assert "--resume" in parse(["train", "-i", "D", "-o", "RUN"], COMMANDS).after_stop()


@pytest.mark.parametrize("words", ["", "--help", "train --help", "data check --help", "--version"])
def test_nothing_heavy_is_imported_for_help(words: str) -> None:
    code = (
        "import sys, contextlib, io, qinjing\n"
        f"words = {words.split()!r}\n"
        "if words:\n"
        "    from qinjing.cli import main\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "        main(words)\n"
        "heavy = ('torch', 'scipy', 'monai', 'numpy', 'matplotlib', 'nibabel', 'cryptography')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_is_quick() -> None:
    """Processor time, since wall time on a shared machine says little."""
    before = os.times()
    assert run("--help").returncode == 0
    after = os.times()
    used = after.children_user + after.children_system
    assert used - before.children_user - before.children_system <= 0.3


def test_public_names_are_all_there_and_cost_nothing_until_used() -> None:
    assert set(qinjing._ROOM) | {"__version__"} == set(qinjing.__all__)
    assert qinjing.verify.__module__ == "qinjing.evidence.verify"
    with pytest.raises(AttributeError):
        _ = qinjing.nothing
    from importlib.metadata import version

    assert qinjing.__version__ == version("qinjing")


def test_plain_and_table() -> None:
    import numpy as np

    assert plain({"a": np.float64(0.5), "b": np.array([1, 2]), "c": (None, True)}) == {
        "a": 0.5, "b": [1, 2], "c": [None, True],
    }  # fmt: skip
    assert table(("name", "n"), [("a", 5), ("bcdefg", 10)]) == "name     n\na        5\nbcdefg  10"


# The main road on small inputs ------------------------------------------------------------------


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    key = str(tmp_path_factory.mktemp("key") / "key.pem")
    environment = {**os.environ, "QINJING_EVIDENCE_KEY": key}
    words = ["phantom", "-o", str(folder), "--cases", "4", "--json"]
    done = run(*words, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["cases"] == 4
    return folder


def test_phantom_leaves_evidence_and_verify_names_a_changed_bit(
    phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["verify", str(phantoms), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["verified"] and result["outputs"] == 10 and result["unclaimed"] == []
    victim = phantoms / "labelsTr" / "phantom_002.nii.gz"
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert cli.main(["verify", str(phantoms)]) == 2
    out, err = capsys.readouterr()
    assert "NOT verified" in out and "labelsTr/phantom_002.nii.gz" in err and "Traceback" not in err
    victim.write_bytes(whole)


def test_check_split_evaluate_and_report_on_phantoms(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*words: str | Path) -> tuple[int, Any, str]:
        code = cli.main([*map(str, words), "--json"])
        out, err = capsys.readouterr()
        return code, json.loads(out), err

    code, checked, err = call("data", "check", "-i", phantoms)
    assert (code, err) == (0, "") and len(checked["good"]) == checked["cases"] == 4

    splits = tmp_path / "splits_final.json"
    code, split, _ = call("data", "split", "-i", phantoms, "-o", splits, "--folds", "2")
    assert code == 0 and split["folds"] == [{"train": 2, "val": 2}] * 2
    assert len(json.loads(splits.read_text())) == 2

    predictions = tmp_path / "predictions"
    predictions.mkdir()
    for number in (0, 1, 2):
        name = f"phantom_{number:03d}.nii.gz"
        shutil.copy(phantoms / "labelsTr" / name, predictions / name)
    metrics = predictions / "metrics.json"
    code, measured, err = call("evaluate", "-i", predictions, "-r", phantoms, "-o", metrics)
    assert (code, err) == (0, "") and measured["unpredicted"] == ["phantom_003"]
    assert measured["mean"]["foreground"]["dice"]["mean"] == 1
    assert json.loads(metrics.read_text()) == measured

    page = tmp_path / "report.html"
    code, written, _ = call("report", metrics, "-o", page)
    assert code == 0 and written["cases"] == 3 and page.read_text().startswith("<!")

    code, verified, _ = call("verify", tmp_path, "-i", phantoms)
    assert code == 0 and verified["statements"] == 3 and not verified["unchecked"]
    # An input of the table is named by itself when it changes.
    (predictions / "phantom_001.nii.gz").write_bytes(b"other")
    code, verified, err = call("verify", tmp_path)
    assert code == 2 and "predictions/phantom_001.nii.gz" in err


def test_evaluate_says_its_table(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = str(phantoms / "labelsTr")
    assert cli.main(["evaluate", "-i", labels, "-r", labels, "-o", str(tmp_path / "m.json")]) == 0
    out, err = capsys.readouterr()
    assert "liver" in out and "1.0000 (1.0000 to 1.0000)" in out and err == ""


def test_info_lists_the_tables(capsys: pytest.CaptureFixture[str]) -> None:
    from qinjing.data.layouts import LAYOUTS
    from qinjing.federate.robust import AGGREGATORS
    from qinjing.federate.strategies import STRATEGIES
    from qinjing.losses import LOSSES
    from qinjing.nets import NETS

    assert cli.main(["info", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [net["name"] for net in result["nets"]] == list(NETS)
    assert result["losses"] == list(LOSSES) and result["layouts"] == list(LAYOUTS)
    assert result["strategies"] == list(STRATEGIES) and result["rules"] == list(AGGREGATORS)
    # Counted on no memory; the same as a real net's.
    real = sum(p.numel() for p in NETS["unet"]().parameters())
    assert {net["name"]: net["parameters"] for net in result["nets"]}["unet"] == real
    assert "torch" in result["runtimes"] and "bf16" in result["runtimes"]
    assert cli.main(["info"]) == 0
    assert f"{real / 1e6:.2f} M" in capsys.readouterr().out


def test_compare_names_the_better_and_leaves_evidence(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import numpy as np

    from qinjing.data.nifti import read_nifti, write_nifti

    for name, shift in (("true", 0), ("moved", 2)):
        (tmp_path / name).mkdir()
        for path in sorted((phantoms / "labelsTr").iterdir()):
            label = read_nifti(path)
            moved = label.with_voxels(np.roll(label.voxels, shift, axis=-1))
            write_nifti(tmp_path / name / path.name, moved)
        words = ["evaluate", "-i", tmp_path / name, "-r", phantoms]
        assert cli.main([*map(str, words), "-o", str(tmp_path / name / "metrics.json")]) == 0
    tables = [str(tmp_path / name / "metrics.json") for name in ("true", "moved")]
    capsys.readouterr()
    assert cli.main(["compare", *tables, "-o", str(tmp_path / "compared")]) == 0
    out, err = capsys.readouterr()
    assert "against true" in out and "moved" in out and "dice" in out and err == ""
    assert cli.main(["compare", *tables, "-o", str(tmp_path / "compared"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["run"] for row in rows} == {"moved"}
    assert cli.main(["verify", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["statements"] == 4


def test_demo_leaves_evidence_of_all_that_it_made(
    phantoms: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The demo itself takes minutes and has its own test; here is what the command adds."""
    import qinjing.demo

    def run_demo(dataset: Path | None, output: Path) -> dict[str, Any]:
        (output / "results").mkdir(parents=True)
        (output / "results" / "case.nii.gz").write_bytes(b"label")
        (output / "scans").symlink_to(phantoms)
        return {"report": "report.html", "refused": []}

    monkeypatch.setattr(qinjing.demo, "run_demo", run_demo)
    assert cli.main(["demo", "-i", str(phantoms), "-o", str(tmp_path / "demo")]) == 0
    assert "report.html" in capsys.readouterr().out
    assert cli.main(["verify", str(tmp_path / "demo"), "-i", str(phantoms), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["unclaimed"] == [] and result["outputs"] == 11


def test_predict_names_every_file_that_it_read(
    phantoms: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two patients' scans of one file name are two inputs; each is named when it changes."""
    import qinjing.tasks.predict

    scans = sorted((phantoms / "imagesTr").glob("*.nii.gz"))[:2]
    places = [tmp_path / patient / "image.nii.gz" for patient in ("p1", "p2")]
    for scan, place in zip(scans, places, strict=True):
        place.parent.mkdir()
        shutil.copy(scan, place)
    entries = [{"image": place.relative_to(tmp_path).as_posix()} for place in places]
    datalist = tmp_path / "datalist.json"
    datalist.write_text(json.dumps({"training": entries}))
    model = tmp_path / "run"
    (model / "fold_0").mkdir(parents=True)
    for name in ("plan.json", "fold_0/model.json", "fold_0/weights.safetensors"):
        (model / name).write_text("{}")
    output, changed = tmp_path / "labels", False

    def predict_folder(model: Path, source: Path, output: Path, **_: Any) -> dict[str, Any]:
        output.mkdir(exist_ok=True)
        (output / "label.nii.gz").write_bytes(b"label")
        if changed:
            places[1].write_bytes(b"written while it was read")
        return {"outputs": [str(output / "label.nii.gz")], "refused": [], "seconds": 0.0}

    monkeypatch.setattr(qinjing.tasks.predict, "predict_folder", predict_folder)
    words = ["predict", "-m", str(model), "-i", str(datalist), "-o", str(output)]
    assert cli.main(words) == 0
    assert cli.main(["verify", str(output)]) == 0
    for place in places:
        whole = place.read_bytes()
        place.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        capsys.readouterr()
        assert cli.main(["verify", str(output)]) == 2
        assert place.relative_to(tmp_path).as_posix() in capsys.readouterr().err
        place.write_bytes(whole)
    changed = True
    assert cli.main(words) == 2
    err = capsys.readouterr().err
    assert "unchanged during the work" in err and "Traceback" not in err
    assert (output / "label.nii.gz").exists()


def test_verify_strict_faults_what_no_statement_names(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(phantoms, folder)
    assert cli.main(["verify", str(folder), "--strict"]) == 0
    (folder / "stranger.txt").write_text("hello")
    assert cli.main(["verify", str(folder)]) == 0
    capsys.readouterr()
    assert cli.main(["verify", str(folder), "--strict"]) == 2
    assert "stranger.txt is named by no statement" in capsys.readouterr().err

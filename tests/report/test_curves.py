"""Logs as training leaves them: torn, resumed, of several folds."""

import json

import numpy as np
import pytest

from qinjing.report.curves import _smooth, curves_figure, read_log


def write(path, *events, tail=""):
    path.write_text("".join(json.dumps(event) + "\n" for event in events) + tail)
    return path


def step(number, **fields):
    return {"kind": "step", "step": number, "loss": 1.0, "lr": 0.1, "seconds": number} | fields


def test_a_log_is_read_in_order_and_junk_is_passed_over(tmp_path):
    path = write(
        tmp_path / "log.jsonl",
        step(2),
        step(1, loss="high"),
        {"kind": "validation", "step": 2, "dice_2": 0.5, "dice_10": None, "score": 0.4},
        {"kind": "validation", "step": 1, "dice_2": 0.3, "score": 0.2},
        {"kind": "step", "step": "three"},
        [1, 2],
        {"kind": "something"},
        step(2, loss=0.25),
        tail='{"kind": "step", "st',
    )
    log = read_log(path)
    np.testing.assert_array_equal(log.steps[:, 0], [1, 2])
    assert np.isnan(log.steps[0, 1]) and log.steps[1, 1] == 0.25
    np.testing.assert_array_equal(log.validations, [[1, 0.2], [2, 0.4]])
    assert list(log.label_dice) == [2, 10]
    np.testing.assert_array_equal(log.label_dice[2], [0.3, 0.5])
    assert np.isnan(log.label_dice[10]).all()


def test_seconds_a_step_are_differences_of_the_clock(tmp_path):
    log = read_log(write(tmp_path / "log.jsonl", *(step(i, seconds=2.5 * i) for i in range(1, 5))))
    np.testing.assert_allclose(log.seconds_a_step, 2.5)


def test_smoothing_looks_back_only_and_keeps_a_constant():
    np.testing.assert_allclose(_smooth(np.full(90, 3.0)), 3.0)
    jump = np.repeat([0.0, 1.0], 60)
    assert (_smooth(jump)[:60] == 0).all() and _smooth(jump)[-1] == 1


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_one_fold_shows_labels_and_several_show_folds(tmp_path, theme):
    events = [step(i) for i in range(1, 9)]
    events.append({"kind": "validation", "step": 8, "dice_1": 0.5, "dice_2": 0.7, "score": 0.6})
    log = read_log(write(tmp_path / "log.jsonl", *events))
    one = curves_figure({"fold 0": log}, {1: "$x", 2: "b"}, theme)
    words = [text.get_text() for text in one.axes[1].get_legend().get_texts()]
    assert words == ["$x", "b", "mean"]
    several = curves_figure({"fold 0": log, "fold 1": log}, {1: "$x", 2: "b"}, theme)
    words = [text.get_text() for text in several.axes[1].get_legend().get_texts()]
    assert words == ["fold 0", "fold 1"]
    one.canvas.draw()
    several.canvas.draw()


def test_an_empty_log_is_no_failure(tmp_path):
    log = read_log(write(tmp_path / "log.jsonl", tail="\x00\n{}\n"))
    assert log.steps.shape == (0, 4) and log.validations.shape == (0, 2)

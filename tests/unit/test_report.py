from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backend.simulation.comparison import (
    holm,
    labels_to_reach,
    mean_over_runs,
    paired_ratio,
)
from backend.simulation.experiment import ALL_LABELS, BASELINE, ZERO_SHOT, Result
from backend.simulation.report import About, verdict, write_report

ABOUT = About("clip-backend simulate set.csv", pictures=125, classes=5)


def test_labels_to_reach_lies_on_the_straight_line_between_two_points() -> None:
    assert labels_to_reach([10, 20, 40], [0.5, 0.7, 0.9], 0.8) == pytest.approx(30)


def test_labels_to_reach_is_a_point_that_is_exactly_at_the_target() -> None:
    assert labels_to_reach([10, 20, 40], [0.5, 0.75, 0.9], 0.75) == 20


def test_labels_to_reach_is_the_first_point_where_the_curve_begins_above() -> None:
    assert labels_to_reach([0, 20], [0.9, 0.95], 0.8) == 0


def test_labels_to_reach_is_the_first_crossing_of_a_curve_that_falls_back() -> None:
    assert labels_to_reach([10, 20, 30, 40], [0.4, 0.8, 0.6, 0.9], 0.8) == 20


def test_labels_to_reach_is_nan_where_the_budget_ends_before() -> None:
    assert math.isnan(labels_to_reach([10, 20], [0.5, 0.7], 0.71))


def test_a_ratio_is_a_geometric_mean_with_a_t_interval_of_the_logarithms() -> None:
    ratio = paired_ratio([50, 100], [100, 100])

    # The logarithms are -ln 2 and 0: mean -ln 2 / 2, standard error ln 2 / 2, t(1 df) 12.7062.
    assert ratio.mean == pytest.approx(math.sqrt(0.5))
    assert ratio.low == pytest.approx(2 ** (-0.5 - 12.7062 / 2), rel=1e-4)
    assert ratio.high == pytest.approx(2 ** (-0.5 + 12.7062 / 2), rel=1e-4)


def test_a_ratio_leaves_out_runs_in_which_one_never_got_there() -> None:
    assert paired_ratio([50, 60, math.nan], [100, 120, 100]) == pytest.approx((0.5, 0.5, 0.5))


def test_a_ratio_of_one_run_has_no_interval() -> None:
    mean, low, high = paired_ratio([50], [100])

    assert mean == pytest.approx(0.5)
    assert math.isnan(low)
    assert math.isnan(high)


def test_runs_that_need_no_label_at_all_do_not_differ() -> None:
    assert paired_ratio([0, 0], [0, 0]) == (1, 1, 1)


def test_the_interval_of_a_difference_covers_the_truth_19_times_in_20() -> None:
    draws = np.random.default_rng(0).normal(3, 2, size=(4000, 5))

    intervals = [mean_over_runs(differences) for differences in draws]

    covered = np.mean([low <= 3 <= high for _, low, high in intervals])
    assert 0.94 < covered < 0.96


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        ([64, 65, 66], [100, 100, 100], "saves 35 % of the labels (95 % interval 32 to 37 %)"),
        ([130, 131, 132], [100, 100, 100], "needs 31 % more labels (95 % interval 29 to 34 %)"),
        (
            [90, 100, 110],
            [100, 100, 100],
            "no difference seen (95 % interval 22 % fewer to 28 % more labels)",
        ),
        ([100, 100], [100, 100], "no difference seen (95 % interval 0 % fewer to 0 % more labels)"),
        ([50], [100], "takes more runs to tell"),
        ([math.nan, math.nan], [100, 100], "not reached"),
    ],
)
def test_a_verdict_claims_no_more_than_the_interval(
    a: list[float], b: list[float], words: str
) -> None:
    assert verdict(paired_ratio(a, b)) == words


def test_holm_multiplies_the_smallest_by_all_the_next_by_one_less() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])


def test_holm_stays_a_probability_and_leaves_out_what_is_unknown() -> None:
    adjusted = holm([0.9, math.nan, 0.6])

    assert adjusted[0] == 1
    assert math.isnan(adjusted[1])
    assert adjusted[2] == 1


def test_the_summary_tells_what_a_strategy_saves(tmp_path: Path) -> None:
    # Both rise in straight lines to 1, the one in half the labels.
    summary = summarise(
        tmp_path,
        {"margin": [[0, 0.5, 1, 1, 1]] * 3, BASELINE: [[0, 0.25, 0.5, 0.75, 1]] * 3},
    )

    assert "| margin | 16 | 18 | 19 |" in summary
    assert f"| {BASELINE} | 32 | 36 | 38 |" in summary
    assert (
        "| margin | 90 % | 0.50 (0.50 to 0.50) | "
        "saves 50 % of the labels (95 % interval 50 to 50 %) | < 0.001 |"
    ) in summary


def test_the_summary_sees_no_difference_between_two_draws_of_chance(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    noisy = np.linspace(0.2, 1, 9) + rng.normal(0, 0.03, size=(2, 10, 9))

    summary = summarise(tmp_path, {"margin": noisy[0], BASELINE: noisy[1]}, full=1.0)

    rows = [line for line in summary.splitlines() if line.startswith("| margin |")]
    compared = [row for row in rows if "interval" in row or "seen" in row]
    assert len(compared) == 4
    assert all("no difference seen" in row for row in compared)


def test_what_is_not_reached_is_said_with_the_number_of_runs(tmp_path: Path) -> None:
    summary = summarise(
        tmp_path,
        {
            "margin": [[0, 0.5, 1], [0, 0.5, 1], [0, 0.4, 0.5]],
            BASELINE: [[0, 0.5, 0.85], [0, 0.4, 0.7], [0, 0.4, 0.6]],
        },
    )

    needed, *_ = (line for line in summary.splitlines() if line.startswith("| margin |"))
    assert needed.count("(reached in 2 of 3 runs)") == 3
    assert f"| {BASELINE} | over 20 (reached in 1 of 3 runs) | not reached | not reached |" in (
        summary
    )


def test_a_saving_that_ran_into_the_end_of_the_budget_is_a_lower_bound(tmp_path: Path) -> None:
    summary = summarise(
        tmp_path,
        {"margin": [[0, 1, 1, 1, 1]] * 2, BASELINE: [[0, 0.2, 0.3, 0.4, 0.5]] * 2},
    )

    assert "saves at least 80 % of the labels" in summary


def test_a_saving_is_no_verdict_where_the_strategy_itself_ran_into_the_end(tmp_path: Path) -> None:
    reached, late = [0.0, *[1.0] * 9], [0.0, *[0.5] * 9]
    summary = summarise(
        tmp_path,
        {"margin": [reached] * 19 + [late], BASELINE: [[*[0.0] * 9, 1.0]] * 20},
    )

    rows = [line for line in summary.splitlines() if line.startswith("| margin | 95 %")]
    assert "cannot be told from so few labels" in rows[0]
    assert "saves" not in rows[0]


def test_what_the_first_labels_reach_is_no_difference_to_be_seen(tmp_path: Path) -> None:
    summary = summarise(tmp_path, {"margin": [[0.9, 1.0]] * 3, BASELINE: [[0.9, 0.95]] * 3})

    assert summary.count("reached by the first labels") == 2


def test_runs_may_end_with_different_numbers_of_labels(tmp_path: Path) -> None:
    results = [
        result(strategy, run, iteration, labels, 0.25 * iteration)
        for strategy in ("margin", BASELINE)
        for run, counts in enumerate([(0, 10, 20, 30, 38), (0, 10, 20, 30, 40)])
        for iteration, labels in enumerate(counts)
    ]
    references = [result(ALL_LABELS, run, 0, 38 + 2 * run, 1.0) for run in range(2)]

    write_report(results, references, ABOUT, tmp_path)

    summary = (tmp_path / "summary.md").read_text()
    # 90 % lie between 30 and the last: at 34.8 and at 36.
    assert "| margin | 32 | 36 | 38 |" in summary
    assert "| margin | 100.0 | 0.0 (0.0 to 0.0) | no difference seen |" in summary


def test_one_run_gets_figures_and_no_verdict(tmp_path: Path) -> None:
    summary = summarise(tmp_path, {"margin": [[0.2, 1.0]], BASELINE: [[0.2, 0.9]]})

    assert "takes more runs to tell" in summary
    assert "One run has no interval" in summary
    assert "saves" not in summary


def test_a_verdict_on_one_of_several_strategies_is_modest(tmp_path: Path) -> None:
    baseline = [[0, 0.25, 0.5, 0.75, 1]] * 3
    # Log ratios of mean -0.49 and standard error 0.11: p is 0.046 alone, 0.14 as one of three.
    better = [[0, 0.4, 0.8, 1, 1], [0, 0.35, 0.7, 1, 1], [0, 0.5, 1, 1, 1]]
    one = summarise(tmp_path, {"margin": better, BASELINE: baseline})
    three = summarise(
        tmp_path, {"margin": better, "entropy": baseline, "least": baseline, BASELINE: baseline}
    )

    assert "saves 39 % of the labels" in one
    assert "by chance" not in one
    assert "Holm, 1979" not in one
    assert "3 strategies were compared" in three
    (row,) = (line for line in three.splitlines() if line.startswith("| margin | 80 %"))
    assert "as one of 3 may by chance" in row


def test_the_summary_says_what_made_it_and_between_what_the_strategies_lie(tmp_path: Path) -> None:
    summary = summarise(
        tmp_path, {"margin": [[0.5, 0.8]] * 2, BASELINE: [[0.5, 0.7]] * 2}, full=0.9, zero_shot=0.4
    )

    assert "clip-backend simulate set.csv" in summary
    assert "125 pictures of 5 classes, 100 of them to learn from and 25 to validate" in summary
    assert "| zero-shot | 40.0 |" in summary
    assert "| all 100 labels | 90.0 |" in summary


def test_the_summary_says_that_the_pool_was_exhausted(tmp_path: Path) -> None:
    curve = [[0.1, *[0.5] * 9, 0.9]] * 2

    summary = summarise(tmp_path, {"margin": curve, BASELINE: curve})

    assert "from 0 labels to 100, which is all there are" in summary


def test_baseline_alone_is_a_learning_curve(tmp_path: Path) -> None:
    summary = summarise(tmp_path, {BASELINE: [[0, 1]] * 2})

    assert f"| {BASELINE} | 8 | 9 | 10 |" in summary
    assert "Against" not in summary


@pytest.mark.parametrize("runs", [1, 4])
def test_the_figures_show_every_strategy(runs: int, tmp_path: Path) -> None:
    names = [f"strategy {number}" for number in range(9)]
    curves = {name: [[0.1, 0.4 + 0.05 * at]] * runs for at, name in enumerate(names)}

    summarise(tmp_path, curves | {BASELINE: [[0.1, 0.35]] * runs}, zero_shot=0.2)

    for figure in ("learning_curves.png", "increase.png"):
        with Image.open(tmp_path / figure) as picture:
            colours = picture.convert("RGB").getcolors(1 << 24)
        assert colours is not None
        # Each strategy's own or, from the seventh on, a repeated one in another dash; and black.
        plain = {colour for count, colour in colours if count > 200}
        assert {(0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167)} <= plain
        assert {(86, 180, 233), (230, 159, 0), (51, 51, 51)} <= plain


def summarise(
    folder: Path,
    curves: dict[str, list[list[float]] | np.ndarray],  # type: ignore[type-arg]
    *,
    full: float = 1.0,
    zero_shot: float | None = None,
) -> str:
    """Return the summary of accuracies by strategy, run and iteration, ten labels a batch."""
    results = [
        result(strategy, run, iteration, 10 * iteration, accuracy)
        for strategy, runs in curves.items()
        for run, curve in enumerate(runs)
        for iteration, accuracy in enumerate(curve)
    ]
    references = []
    for run in range(len(next(iter(curves.values())))):
        references.append(result(ALL_LABELS, run, 0, 100, full))
        if zero_shot is not None:
            references.append(result(ZERO_SHOT, run, 0, 0, zero_shot))
    write_report(results, references, ABOUT, folder)
    return (folder / "summary.md").read_text()


def result(strategy: str, run: int, iteration: int, labels: int, accuracy: float) -> Result:
    return Result(
        run, iteration, strategy, labels, 1.0, 1.0, accuracy, 1.0, 0.5, 0.1, min(labels, 5), 0.1
    )

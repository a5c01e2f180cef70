"""`clip-backend simulate`, on scikit-learn's digits as embeddings and on pictures through CLIP."""

from __future__ import annotations

import csv
import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result as Outcome
from PIL import Image
from sklearn.datasets import load_digits
from typer.testing import CliRunner

from backend import CLIPImageClassifier
from backend.cli import app
from backend.errors import ClipBackendError, DatasetError, SettingsError
from tests.integration.conftest import wait_until

COLUMNS = [
    *("run", "iteration", "strategy", "n_annotations", "top1_train", "top5_train", "top1_val"),
    *("top5_val", "log_loss_val", "ece_val", "n_classes_annotated", "seconds"),
]
SMALL = ("--runs", "2", "--iterations", "2", "--annotate-per-iteration", "8")


@pytest.fixture(autouse=True)
def _logging_stays_as_it_is() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


@pytest.fixture(autouse=True)
def _shipped_clip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"CLIP_MODEL": "tiny", "DEVICE": "cpu", "PRECISION": "float32"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    data = load_digits(n_class=4)
    np.savez(path, embeddings=data.data[:200], labels=data.target[:200])
    return path


@pytest.fixture(scope="module")
def whole(digits: Path) -> Path:
    """Return the folder of a simulation that was not disturbed."""
    simulate("--embeddings", digits, *SMALL, "--out", digits.parent / "simulation")
    return digits.parent / "simulation"


@pytest.fixture
def begun(whole: Path) -> Path:
    """Return a copy of that folder where the command looks by default."""
    shutil.copytree(whole, "simulation")
    return Path("simulation")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Return a CSV of 24 pictures, of which CLIP can tell the colours apart."""
    rows = ["path,label,split"]
    for index in range(24):
        name = ("red", "green", "blue")[index % 3]
        colour = [20 + 5 * index] * 3
        colour[index % 3] = 230
        Image.new("RGB", (32, 32), tuple(colour)).save(tmp_path / f"{index}.png")
        rows.append(f"{index}.png,{name},{'validation' if index >= 18 else 'train'}")
    path = tmp_path / "set.csv"
    path.write_text("\n".join(rows))
    return path


def simulate(*arguments: object, raises: type[ClipBackendError] | None = None) -> Outcome:
    outcome = CliRunner().invoke(app, ["simulate", *map(str, arguments)])
    if raises is None:
        assert outcome.exit_code == 0, outcome.output
    else:
        assert isinstance(outcome.exception, raises), outcome.output
    return outcome


def run(*arguments: object) -> subprocess.Popen[str]:
    """Start the command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "backend.cli", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )


def summary(folder: Path) -> str:
    """Return what is in a summary but for the folder in its command."""
    return (folder / "summary.md").read_text().replace(f"--out {folder}", "")


def table(path: Path) -> list[dict[str, str]]:
    """Return the rows without what depends on the clock."""
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def test_the_same_seed_gives_the_same_tables(digits: Path, whole: Path) -> None:
    simulate("--embeddings", digits, *SMALL, "--seed", 0, "--out", "again")
    simulate("--embeddings", digits, *SMALL, "--seed", 1, "--out", "other")

    for name in ("results.csv", "references.csv"):
        first, again, other = (table(out / name) for out in (whole, Path("again"), Path("other")))
        assert first == again
        assert first != other
    assert summary(whole) == summary(Path("again"))


def test_the_table_has_a_row_for_each_strategy_run_and_iteration(whole: Path) -> None:
    with (whole / "results.csv").open(newline="") as file:
        assert next(csv.reader(file)) == COLUMNS
    rows = table(whole / "results.csv")
    assert [(row["strategy"], row["run"], row["iteration"]) for row in rows] == [
        (strategy, str(run), str(iteration))
        for strategy in ("auto", "random")
        for run in range(2)
        for iteration in range(3)
    ]
    assert [row["n_annotations"] for row in rows[:3]] == ["4", "12", "20"]


def test_strategies_of_a_run_start_as_equals(whole: Path) -> None:
    first = [row for row in table(whole / "results.csv") if row["iteration"] == "0"]

    of_run = [
        {tuple(v for k, v in row.items() if k != "strategy") for row in first if row["run"] == run}
        for run in ("0", "1")
    ]
    assert [len(rows) for rows in of_run] == [1, 1]
    assert of_run[0] != of_run[1]


def test_figures_and_summary_are_written_and_shown(digits: Path, begun: Path) -> None:
    outcome = simulate("--embeddings", digits, *SMALL)

    for name in ("learning_curves.png", "increase.png"):
        with Image.open(begun / name) as picture:
            assert min(picture.size) > 500
            assert len(picture.convert("RGB").getcolors(1 << 24) or ()) > 50
    assert "200 pictures of 4 classes, 160 of them to learn from" in summary(begun)
    assert "## Against random" in summary(begun)
    assert "Against random" in outcome.stdout


def test_annotators_do_not_wait_for_the_queue_to_be_refreshed(digits: Path, whole: Path) -> None:
    simulate("--embeddings", digits, *SMALL, "--refresh-delay", 8, "--annotators", 3, "--out", "x")

    rows, ideal = table(Path("x/results.csv")), table(whole / "results.csv")
    counts = [row["n_annotations"] for row in rows]
    assert counts == [row["n_annotations"] for row in ideal]
    # The first order is in place when they begin; the second one is still to come.
    same = [row == other for row, other in zip(rows, ideal, strict=True) if row["run"] == "0"]
    assert same[:3] == [True, True, False]
    assert "--annotators 3 --refresh-delay 8" in (Path("x") / "summary.md").read_text()


def test_the_command_in_the_summary_gives_the_same_results(whole: Path) -> None:
    command = (whole / "summary.md").read_text().split("```bash\n")[1].split("\n```")[0]

    run(*shlex.split(command)[1:-1], "elsewhere").communicate()

    assert table(Path("elsewhere/results.csv")) == table(whole / "results.csv")


@pytest.mark.parametrize("left", [0, 1, 5, 9])
def test_a_stop_at_any_row_costs_nothing(digits: Path, begun: Path, whole: Path, left: int) -> None:
    (begun / "summary.md").unlink()
    lines = (whole / "results.csv").read_text().splitlines(keepends=True)
    (begun / "results.csv").write_text("".join(lines[: 1 + left]))

    simulate("--embeddings", digits, *SMALL)

    assert table(begun / "results.csv") == table(whole / "results.csv")
    assert summary(begun) == summary(whole)
    # What was whole is not computed again: the seconds are the same.
    kept = 1 + left // 3 * 3
    assert (begun / "results.csv").read_text().startswith("".join(lines[:kept]))
    assert (begun / "references.csv").read_text() == (whole / "references.csv").read_text()


def test_ctrl_c_leaves_a_whole_table_and_says_how_to_go_on(digits: Path, whole: Path) -> None:
    process = run("simulate", "--embeddings", digits, *SMALL)
    results = Path("simulation/results.csv")
    wait_until(lambda: results.exists() or process.poll() is not None, "a row, or the end")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()

    assert process.returncode == 130
    assert "the same command goes on" in said
    assert 0 < len(table(results)) < 12
    simulate("--embeddings", digits, *SMALL)
    assert table(results) == table(whole / "results.csv")


def test_runs_iterations_and_strategies_can_be_added(digits: Path, whole: Path) -> None:
    few = ("--embeddings", digits, "--annotate-per-iteration", 8, "--out", "grown")
    simulate(*few, "--runs", 1, "--iterations", 1, "--strategy", "random")
    simulate(*few, "--runs", 2, "--iterations", 2, "--strategy", "auto")

    def by_place(out: Path) -> list[tuple[str, ...]]:
        return sorted(tuple(row.values()) for row in table(out / "results.csv"))

    assert by_place(Path("grown")) == by_place(whole)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (("--seed", 1), "--seed was 0 in simulation and cannot become 1"),
        (("--runs", 1), "--runs was 2 in simulation and cannot become 1"),
        (("--validation", 0.3), "--validation was not given in simulation and cannot become 0.3"),
        (("--annotators", 2), "--annotators was 1 in simulation and cannot become 2"),
        (("--refresh-delay", 3), "--refresh-delay was 0 in simulation and cannot become 3"),
        (("--no-active-learning",), "--no-active-learning was"),
    ],
)
def test_another_experiment_needs_another_folder(
    digits: Path, begun: Path, changed: tuple[object, ...], message: str
) -> None:
    before = (begun / "results.csv").read_bytes()

    outcome = simulate("--embeddings", digits, *SMALL, *changed, raises=SettingsError)

    assert message in str(outcome.exception)
    assert "choose another --out" in str(outcome.exception)
    assert (begun / "results.csv").read_bytes() == before


def test_other_data_needs_another_folder(digits: Path, begun: Path) -> None:
    data = load_digits(n_class=4)
    np.savez("other.npz", embeddings=data.data[200:400], labels=data.target[200:400])

    outcome = simulate("--embeddings", "other.npz", *SMALL, raises=SettingsError)

    assert "begun with other data" in str(outcome.exception)


def test_a_table_of_something_else_is_left_alone(digits: Path) -> None:
    Path("mine.csv").write_text("name,age\n")

    outcome = simulate(
        "--embeddings", digits, *SMALL, "--results", "mine.csv", raises=SettingsError
    )

    assert "mine.csv exists" in str(outcome.exception)
    assert Path("mine.csv").read_text() == "name,age\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("results.csv", "name,age\n"),
        ("results.csv", ",".join(COLUMNS) + "\n0,0,margin,ten" + ",1" * 8),
        ("experiment.json", "{"),
        ("experiment.json", json.dumps({"data": "x"})),
    ],
)
def test_a_broken_file_is_an_error_that_names_it(
    digits: Path, begun: Path, name: str, content: str
) -> None:
    (begun / name).write_text(content)

    outcome = simulate("--embeddings", digits, *SMALL, raises=SettingsError)

    assert f"simulation/{name}" in str(outcome.exception)


def test_results_can_go_to_a_file_of_choice(digits: Path) -> None:
    simulate("--embeddings", digits, *SMALL, "--results", "tables/of-digits.csv")

    assert len(table(Path("tables/of-digits.csv"))) == 12
    assert not Path("simulation/results.csv").exists()


def test_the_pool_may_be_exhausted_before_the_iterations_are(digits: Path) -> None:
    data = load_digits(n_class=4)
    np.savez("few.npz", embeddings=data.data[:40], labels=data.target[:40])

    simulate("--embeddings", "few.npz", "--runs", 2, "--iterations", 50)

    rows = table(Path("simulation/results.csv"))
    full = table(Path("simulation/references.csv"))
    last = [row for row in rows if row["n_annotations"] == full[0]["n_annotations"]]
    assert len(last) == 4
    assert [row["top1_val"] for row in last] == [row["top1_val"] for row in full] * 2
    assert ", which is all there are" in Path("simulation/summary.md").read_text()


def test_embeddings_with_texts_are_compared_with_zero_shot() -> None:
    rng = np.random.default_rng(0)
    text = rng.normal(size=(4, 16))
    labels = np.arange(120) % 4
    np.savez(
        "text.npz",
        embeddings=text[labels] + rng.normal(0, 0.8, (120, 16)),
        labels=labels,
        text=text,
    )

    simulate("--embeddings", "text.npz", *SMALL, "--initial-per-class", 0)

    zero_shot = table(Path("simulation/references.csv"))[0]
    first = table(Path("simulation/results.csv"))[0]
    assert (zero_shot["strategy"], zero_shot["n_annotations"]) == ("zero-shot", "0")
    assert float(zero_shot["top1_val"]) > 0.5
    assert (first["n_annotations"], first["top1_train"]) == ("0", "")
    assert first["top1_val"] == zero_shot["top1_val"]
    assert "| zero-shot |" in Path("simulation/summary.md").read_text()


def test_without_active_learning_all_labels_are_learnt_at_once(digits: Path) -> None:
    outcome = simulate("--embeddings", digits, "--runs", 2, "--no-active-learning")

    rows = table(Path("simulation/results.csv"))
    assert [(row["strategy"], row["n_annotations"]) for row in rows] == [("all labels", "160")] * 2
    assert rows[0]["top1_val"][:5] in outcome.stdout
    assert not Path("simulation/summary.md").exists()


def test_pictures_are_embedded_once(pictures: Path) -> None:
    arguments = (pictures, "--runs", 1, "--iterations", 2, "--annotate-per-iteration", 3)
    simulate(*arguments)
    first = table(Path("simulation/results.csv"))
    for picture in Path.cwd().glob("*.png"):
        picture.unlink()

    simulate(*arguments[:-4], "--iterations", 3, *arguments[-2:])

    rows = table(Path("simulation/results.csv"))
    assert [row for row in rows if row["iteration"] != "3"] == first


def test_the_classifier_of_all_labels_is_kept(pictures: Path) -> None:
    simulate(pictures, "--runs", 1, "--no-active-learning", "--model-path", "model.safetensors")

    classifier = CLIPImageClassifier.load("model.safetensors", device="cpu")
    validation = [f"{index}.png" for index in range(18, 24)]
    truth = ["red", "green", "blue"] * 2
    accuracy = table(Path("simulation/results.csv"))[-1]["top1_val"]
    assert float(accuracy) == pytest.approx(classifier.score(validation, truth), abs=1e-6)
    fitted = CLIPImageClassifier("tiny", device="cpu", precision="float32").fit(
        [f"{index}.png" for index in range(18)], ["red", "green", "blue"] * 6
    )
    assert classifier.predict(validation).tolist() == fitted.predict(validation).tolist()


def test_the_classifier_of_embeddings_is_kept(digits: Path) -> None:
    simulate("--embeddings", digits, *SMALL, "--model-path", "model.safetensors")

    classifier = CLIPImageClassifier.load("model.safetensors")
    data = load_digits(n_class=4)
    assert classifier.score(data.data[:200], data.target[:200].astype(str)) > 0.9


def test_clip_can_be_finetuned_on_what_is_labelled(pictures: Path) -> None:
    tuned = ("--finetune", "--epochs", 2, "--batch-size", 8, "--learning-rate", 0.001)
    small = ("--runs", 1, "--iterations", 1, "--annotate-per-iteration", 3)

    for out in ("first", "again"):
        simulate(pictures, *small, *tuned, "--out", out, "--model-path", f"{out}.safetensors")
    simulate(pictures, *small, "--out", "frozen")

    first, again, frozen = (table(Path(out, "results.csv")) for out in ("first", "again", "frozen"))
    assert first == again
    assert [row["n_annotations"] for row in first] == [row["n_annotations"] for row in frozen]
    assert [row["log_loss_val"] for row in first] != [row["log_loss_val"] for row in frozen]
    classifier = CLIPImageClassifier.load("first.safetensors", device="cpu")
    assert classifier.finetune
    full = table(Path("first/references.csv"))[-1]["top1_val"]
    validation = [f"{index}.png" for index in range(18, 24)]
    assert float(full) == pytest.approx(
        classifier.score(validation, ["red", "green", "blue"] * 2), abs=1e-6
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Give either a dataset"),
        (("set.csv", "--embeddings", "x.npz"), "Give either a dataset"),
        (("--embeddings", "x.npz", "--strategy", "best"), "'best' is not known; known are "),
        (("--embeddings", "x.npz", "--validation", 0), "--validation: a share above 0"),
        (("--embeddings", "x.npz", "--score-per-iteration", 5), "--score-per-iteration: 5"),
        (
            ("--embeddings", "x.npz", "--score-per-iteration", 11, "--refresh-delay", 2),
            "--score-per-iteration: 11 pictures cannot give 12",
        ),
        (("--embeddings", "x.npz", "--finetune"), "--finetune needs pictures"),
        (("--embeddings", "x.npz", "--epochs", 5), "--epochs is for --finetune"),
    ],
)
def test_a_wrong_option_is_a_sentence(arguments: tuple[object, ...], message: str) -> None:
    outcome = simulate(*arguments, raises=SettingsError)

    assert message in str(outcome.exception)
    assert not Path("simulation").exists()


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_embeddings_that_are_no_numbers_are_refused(broken: float) -> None:
    embeddings = np.ones((30, 4))
    embeddings[7, 2] = broken
    np.savez("broken.npz", embeddings=embeddings, labels=np.arange(30) % 3)

    outcome = simulate("--embeddings", "broken.npz", raises=DatasetError)

    assert "row 7 of `embeddings`" in str(outcome.exception)
    assert not Path("simulation").exists()


def test_missing_data_is_an_error_that_names_the_file() -> None:
    for arguments in (("missing.csv",), ("--embeddings", "missing.npz")):
        outcome = simulate(*arguments, raises=DatasetError)

        assert arguments[-1] in str(outcome.exception)

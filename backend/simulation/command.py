"""`clip-backend simulate`: from a file of labelled data to a folder of results."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from backend import __version__
from backend.classifier import CLIPImageClassifier
from backend.clip.encoder import Encoder, load_encoder
from backend.errors import DatasetError, SettingsError
from backend.labelstudio.decoding import ImageLimits
from backend.learning.strategies import STRATEGIES
from backend.simulation.dataset import EmbeddedDataset, LabelledImages, read_dataset
from backend.simulation.embedded import embed, load_embeddings, save_embeddings
from backend.simulation.experiment import (
    ALL_LABELS,
    BASELINE,
    ZERO_SHOT,
    Experiment,
    Parameters,
)
from backend.simulation.learners import FinetuningLearner, HeadLearner, Learner, save
from backend.simulation.report import About, write_report
from backend.simulation.results import Identity, Results

# What a shell reports for a program that Ctrl-C ended.
_INTERRUPTED = 130


@dataclass(frozen=True)
class Files:
    """What is read, `dataset` or `embeddings`, and where what comes of it goes."""

    dataset: Path | None
    embeddings: Path | None
    out: Path
    results: Path | None
    model: Path | None


def run_simulation(
    files: Files,
    parameters: Parameters,
    classifier: CLIPImageClassifier,
    *,
    active_learning: bool,
    limits: ImageLimits,
) -> int:
    """Simulate, or go on where the same command was stopped; return an exit code.

    `BASELINE` is always among the strategies. Without `active_learning` there are none: each run
    learns from all labels of its training part at once. `classifier`, not fitted, tells which CLIP
    is used and whether it is fine-tuned.

    Raises DatasetError for data that cannot be used, and SettingsError for an option that is wrong
    or is not what the folder was begun with.
    """
    parameters = replace(parameters, strategies=(*parameters.strategies, BASELINE))
    parameters.check(STRATEGIES)
    terminal = Console(stderr=True)
    kept = files.out / "experiment.json"
    results_path = files.results or files.out / "results.csv"
    source = _open(files, classifier, parameters.seed, limits, terminal)
    options = _options(parameters, classifier, active_learning=active_learning)
    identity = Identity(data=source.digest, options=options).added_to(kept, results_path)
    parameters = replace(parameters, strategies=tuple(identity.options["strategy"]))
    try:
        dataset, learner = source.load()
        experiment = Experiment(dataset, learner, parameters)
        identity.keep(kept)
        levels = (ZERO_SHOT, ALL_LABELS)
        if active_learning:
            references = Results(files.out / "references.csv", levels)
            results = Results(results_path, parameters.strategies)
        else:
            references = Results(results_path, levels)
            results = None
        _simulate(experiment, references, results, terminal)
        if files.model is not None:
            training = experiment.split(parameters.runs - 1).training
            best = learner.learn(training, training)
            save(best, dataset.classes, classifier, files.model)
    except KeyboardInterrupt:
        terminal.print(f"stopped; the same command goes on from what {files.out} has")
        return _INTERRUPTED
    if results is None:
        _show(references)
        return 0
    about = About(_command(files, identity.options), len(dataset.labels), len(dataset.classes))
    write_report(results.rows(), references.rows(), about, files.out)
    Console().print(Markdown((files.out / "summary.md").read_text(encoding="utf-8")))
    return 0


def _simulate(
    experiment: Experiment, references: Results, results: Results | None, terminal: Console
) -> None:
    """Add the rows that are missing; a run of a strategy that was cut short begins anew."""
    parameters = experiment.parameters
    parts = [(references, name) for name in experiment.references]
    if results is not None:
        parts += [(results, name) for name in parameters.strategies]
    work = [(run, *part) for run in range(parameters.runs) for part in parts]
    lengths = [experiment.length(name, run) for run, _, name in work]
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=terminal,
    ) as bar:
        shown = bar.add_task("", total=sum(lengths))
        for (run, kept, name), length in zip(work, lengths, strict=True):
            bar.update(shown, description=f"run {run + 1} of {parameters.runs}, {name}")
            if len(kept.of(name, run)) == length:
                bar.advance(shown, length)
                continue
            for result in experiment.simulate(name, run):
                kept.add(result)
                bar.advance(shown)


@dataclass(frozen=True)
class _Source:
    """Where the data comes from; `digest` changes whenever its embeddings might."""

    digest: str
    load: Callable[[], tuple[EmbeddedDataset, Learner]]


def _open(
    files: Files,
    classifier: CLIPImageClassifier,
    seed: int,
    limits: ImageLimits,
    terminal: Console,
) -> _Source:
    match files.dataset, files.embeddings:
        case None, Path() as embeddings:
            return _of_embeddings(embeddings, classifier)
        case Path() as dataset, None:
            return _of_pictures(dataset, files.out, classifier, seed, limits, terminal)
        case _:
            raise SettingsError(
                "Give either a dataset, such as `clip-backend dataset` makes, or "
                "--embeddings FILE.npz"
            )


def _of_embeddings(path: Path, classifier: CLIPImageClassifier) -> _Source:
    if classifier.finetune:
        raise SettingsError("--finetune needs pictures: give a dataset, not --embeddings")
    dataset = load_embeddings(path)
    return _Source(_digest(path), lambda: (dataset, HeadLearner(dataset)))


def _of_pictures(
    path: Path,
    out: Path,
    classifier: CLIPImageClassifier,
    seed: int,
    limits: ImageLimits,
    terminal: Console,
) -> _Source:
    images = read_dataset(path)
    encoder = load_encoder(
        classifier.model, classifier.pretrained, classifier.device, classifier.precision
    )
    digest = _digest(path, encoder.identity)
    kept = out / f"embeddings-{digest[:12]}.npz"

    def load() -> tuple[EmbeddedDataset, Learner]:
        dataset = _embed_once(images, encoder, limits, kept, terminal)
        if not classifier.finetune:
            return dataset, HeadLearner(dataset, encoder)
        return dataset, FinetuningLearner(dataset, images.paths, encoder, classifier, seed, limits)

    return _Source(digest, load)


def _digest(path: Path, encoder: str = "") -> str:
    try:
        # Rows of two releases, which may learn differently, do not belong in one table.
        return sha256(path.read_bytes() + f"{encoder} {__version__}".encode()).hexdigest()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from None


def _embed_once(
    images: LabelledImages, encoder: Encoder, limits: ImageLimits, kept: Path, terminal: Console
) -> EmbeddedDataset:
    if not kept.exists():
        with Progress(
            TextColumn("embedding pictures"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=terminal,
        ) as bar:
            shown = bar.add_task("", total=len(images.paths))
            dataset = embed(
                images,
                encoder,
                limits,
                on_progress=lambda done, _: bar.update(shown, completed=done),
            )
        save_embeddings(kept, dataset)
    # Also after saving: who goes on later works with the same numbers, to the last bit.
    return load_embeddings(kept)


def _options(
    parameters: Parameters, classifier: CLIPImageClassifier, *, active_learning: bool
) -> dict[str, Any]:
    """Return the command's options by name; None and False are not given."""
    tuned = ("batch_size", "epochs", "learning_rate") if classifier.finetune else ()
    return {
        "strategy": list(dict.fromkeys(parameters.strategies)),
        "initial-per-class": parameters.initial_per_class,
        "score-per-iteration": parameters.score_per_iteration,
        "annotate-per-iteration": parameters.annotate_per_iteration,
        "annotators": parameters.annotators,
        "refresh-delay": parameters.refresh_delay,
        "validation": parameters.validation,
        "runs": parameters.runs,
        "iterations": parameters.iterations,
        "seed": parameters.seed,
        "no-active-learning": not active_learning,
        "finetune": classifier.finetune,
        **{name.replace("_", "-"): getattr(classifier, name) for name in tuned},
    }


def _command(files: Files, options: Mapping[str, Any]) -> str:
    """Return the command that makes the same results, whatever the defaults become."""
    words = ["clip-backend", "simulate"]
    words += [str(files.dataset)] if files.dataset else ["--embeddings", str(files.embeddings)]
    for name, value in options.items():
        for each in value if isinstance(value, list) else [value]:
            if each is True:
                words.append(f"--{name}")
            elif each is not None and each is not False:
                words += [f"--{name}", str(each)]
    words += ["--out", str(files.out)]
    for name, path in (("results", files.results), ("model-path", files.model)):
        if path is not None:
            words += [f"--{name}", str(path)]
    return shlex.join(words)


def _show(references: Results) -> None:
    table = Table("run", "classifier", "labels", "top-1", "top-5", "log loss", "ECE", "seconds")
    for row in references.rows():
        figures = (row.top1_val, row.top5_val, row.log_loss_val, row.ece_val)
        table.add_row(
            str(row.run),
            row.strategy,
            str(row.n_annotations),
            *(f"{figure:.3f}" for figure in figures),
            f"{row.seconds:.1f}",
        )
    Console().print(table)

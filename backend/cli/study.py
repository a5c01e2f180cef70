"""The commands that need no Label Studio: a labelled set, and what it tells."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backend.cli.app import app, read_settings
from backend.errors import SettingsError


@app.command()
def dataset(
    source: Annotated[
        Path,
        typer.Argument(
            help="A folder with a folder a class, a .csv with the columns path and label, or a "
            "Label Studio export (.json)."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The CSV of path, label and split.")] = Path(
        "dataset.csv"
    ),
    validation: Annotated[
        float, typer.Option(help="Share of each class that is set aside for validation.")
    ] = 0.2,
    seed: Annotated[int, typer.Option(min=0, help="The same seed, the same split.")] = 0,
    root: Annotated[
        Path | None, typer.Option(help="Folder of an export's files; default: the export's own.")
    ] = None,
    control: Annotated[
        str | None, typer.Option(help="The <Choices> of an export that has several.")
    ] = None,
    image_key: Annotated[
        str | None, typer.Option(help="The picture's field in an export's task data.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Default: dataset-report.json beside the CSV.")
    ] = None,
    embeddings: Annotated[
        Path | None, typer.Option(help="Keep the embeddings in this .npz, for `simulate`.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace existing files.")] = False,
) -> None:
    """Make a labelled set: readable pictures, a stratified split, duplicates reported."""
    from backend import assembly
    from backend.simulation.export import ExportOptions
    from backend.simulation.preparation import Files, prepare

    settings = read_settings()
    prepare(
        source,
        Files(out, report, embeddings),
        share=validation,
        seed=seed,
        export=ExportOptions(root, control, image_key),
        overwrite=overwrite,
        load_encoder=lambda: assembly.encoder(settings),
        limits=assembly.image_limits(settings),
    )


@app.command()
def simulate(
    dataset: Annotated[
        Path | None,
        typer.Argument(help="A labelled set, such as `clip-backend dataset` makes."),
    ] = None,
    embeddings: Annotated[
        Path | None,
        typer.Option(help="Instead: an .npz of `embeddings`, `labels` and maybe `text`."),
    ] = None,
    strategy: Annotated[
        list[str] | None,
        typer.Option(help="Repeatable; `random` is always simulated too; default: auto."),
    ] = None,
    initial_per_class: Annotated[
        int, typer.Option(min=0, help="Random labels of each class to start from.")
    ] = 1,
    score_per_iteration: Annotated[
        int | None, typer.Option(min=1, help="Pictures to score, drawn at random; default: all.")
    ] = None,
    annotate_per_iteration: Annotated[
        int, typer.Option(min=1, help="Labels to ask for before the next training.")
    ] = 10,
    annotators: Annotated[
        int, typer.Option(min=1, help="People who label at once, each another picture.")
    ] = 1,
    refresh_delay: Annotated[
        int,
        typer.Option(min=0, help="Labels saved while a model is trained and the queue refreshed."),
    ] = 0,
    validation: Annotated[
        float | None,
        typer.Option(help="Share to draw for validation; default: the set's own split, or 0.2."),
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Repetitions with other draws.")] = 5,
    iterations: Annotated[int, typer.Option(min=1, help="Batches of labels to ask for.")] = 20,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="The same seed, the same results.")
    ] = 0,
    active_learning: Annotated[
        bool,
        typer.Option(
            "--active-learning/--no-active-learning", help="Or train once on all training labels."
        ),
    ] = True,
    finetune: Annotated[
        bool, typer.Option("--finetune", help="Train CLIP too: as in the study, and slow.")
    ] = False,
    batch_size: Annotated[
        int | None, typer.Option(min=2, help="Pictures a step of --finetune; default: 64.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Times --finetune sees a picture; default: 10.")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(min=0, help="Highest of --finetune; default: 1e-5.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of tables, figures and summary.")] = Path(
        "simulation"
    ),
    results: Annotated[
        Path | None, typer.Option(help="The table of results; default: results.csv in --out.")
    ] = None,
    model_path: Annotated[
        Path | None,
        typer.Option(help="Keep the classifier of all training labels here (.safetensors)."),
    ] = None,
) -> None:
    """Tell on a labelled set how many labels each query strategy needs."""
    from backend import CLIPImageClassifier, assembly
    from backend.simulation.command import Files, run_simulation
    from backend.simulation.experiment import Parameters

    settings = read_settings()
    classifier = CLIPImageClassifier(
        settings.clip_model,
        settings.clip_pretrained,
        device=settings.device,
        precision=settings.precision,
        finetune=finetune,
        random_state=seed,
    )
    tuning = {"batch_size": batch_size, "epochs": epochs, "learning_rate": learning_rate}
    for name, value in tuning.items():
        if value is not None and not finetune:
            raise SettingsError(f"--{name.replace('_', '-')} is for --finetune: add that")
    classifier.set_params(**{name: value for name, value in tuning.items() if value is not None})
    code = run_simulation(
        Files(dataset, embeddings, out, results, model_path),
        Parameters(
            strategies=tuple(strategy or ("auto",)),
            initial_per_class=initial_per_class,
            score_per_iteration=score_per_iteration,
            annotate_per_iteration=annotate_per_iteration,
            validation=validation,
            runs=runs,
            iterations=iterations,
            seed=seed,
            annotators=annotators,
            refresh_delay=refresh_delay,
        ),
        classifier,
        active_learning=active_learning,
        limits=assembly.image_limits(settings),
    )
    raise typer.Exit(code)

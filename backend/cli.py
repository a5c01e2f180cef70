"""The commands of `clip-backend`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from backend import __version__
from backend.errors import NOT_CONFIGURED, ClipBackendError, EncoderError, SettingsError

if TYPE_CHECKING:
    from backend.settings import Settings
    from backend.store import Store

app = typer.Typer(
    name="clip-backend",
    help="Pre-annotates Label Studio's images with CLIP and learns from every annotation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ProjectOption = Annotated[int, typer.Option("--project", min=1, help="Label Studio's project id.")]


def main() -> None:
    """Run a command; an error that a user can mend is one line."""
    try:
        app()
    except (SettingsError, EncoderError) as error:
        _fail(error, NOT_CONFIGURED)
    except ClipBackendError as error:
        _fail(error, 1)


@app.callback()
def _describe() -> None:
    """Give every command the same front."""


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


@app.command()
def up() -> None:
    """Start API, worker and Redis; stop them all with Ctrl-C."""
    from backend import supervisor

    raise typer.Exit(supervisor.up(_settings()))


@app.command()
def serve() -> None:
    """Start the API alone."""
    from backend.wsgi import Server

    Server(_settings()).run()


@app.command()
def worker() -> None:
    """Start a worker alone: it embeds, trains and refreshes."""
    from backend import assembly
    from backend.jobs.queue import JobQueue
    from backend.jobs.services import Services
    from backend.jobs.worker import work
    from backend.prediction import Predictor
    from backend.store import Store

    settings = _settings()
    client = assembly.label_studio(settings)
    queue = JobQueue(settings.redis)
    queue.check()
    store = Store.open(settings.database)
    with assembly.image_fetcher(settings, client) as images:
        predictor = Predictor(
            assembly.encoder(settings), store.embeddings, images, assembly.image_limits(settings)
        )
        services = Services(
            store,
            client,
            predictor,
            settings.learning,
            settings.reconcile_every,
            settings.keep_unused,
        )
        work(services, queue)
    store.close()


@app.command()
def connect(
    project: ProjectOption,
    backend_url: Annotated[
        str | None,
        typer.Option(help="This backend as seen from Label Studio; default: BACKEND_URL."),
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Only show what would change.")] = False,
) -> None:
    """Connect a project: ML backend, webhook, queue and view; then predict every task."""
    from backend import assembly
    from backend.connection import Connection
    from backend.progress import follow

    settings = _settings(**({"backend_url": backend_url} if backend_url else {}))
    if settings.backend_url is None:
        raise SettingsError(
            "Say where Label Studio finds this backend: --backend-url or BACKEND_URL, "
            f"such as http://localhost:{settings.port}"
        )
    store = _store(settings)
    connection = Connection(store, assembly.label_studio(settings), settings, project)
    changes = connection.plan(settings.backend_url)
    for change in changes:
        typer.echo(f"{'would change' if dry_run else 'change'}  {change.description}")
    if not changes:
        typer.echo(f"project {project} is connected as it should be")
    if dry_run:
        return
    connection.connect(settings.backend_url, changes)
    follow(store, settings, project)


@app.command()
def disconnect(project: ProjectOption) -> None:
    """Undo exactly what `connect` did, and remove our predictions."""
    from backend import assembly
    from backend.connection import Connection

    settings = _settings()
    Connection(_store(settings), assembly.label_studio(settings), settings, project).disconnect(
        lambda done: typer.echo(done)
    )
    typer.echo(f"project {project} is disconnected")


@app.command()
def doctor(
    project: Annotated[
        list[int] | None, typer.Option(help="Check this project; default: all connected ones.")
    ] = None,
) -> None:
    """Check each link in turn; say what is wrong and the command that mends it."""
    from backend.doctor import examine

    raise typer.Exit(0 if examine(_settings(), project or []) else 1)


@app.command()
def status() -> None:
    """Show the projects, their versions, and what is being done."""
    from backend.progress import show_status

    settings = _settings()
    show_status(_store(settings), settings)


@app.command()
def train(project: ProjectOption) -> None:
    """Train a project now, whatever RETRAIN_DELAY says."""
    _request(project, "train")


@app.command()
def refresh(project: ProjectOption) -> None:
    """Look for new tasks and push the predictions that Label Studio lacks."""
    _request(project, "sync")


@app.command()
def review(
    project: ProjectOption,
    limit: Annotated[int, typer.Option(min=1, help="Suspected labels to list a control.")] = 50,
) -> None:
    """List labels that are probably wrong, make a view of them, and compare the annotators."""
    from backend import assembly
    from backend.review import review

    settings = _settings()
    review(
        _store_of_connected(settings, project),
        assembly.label_studio(settings),
        project,
        limit=limit,
    )


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(help="The file to write; it must not exist.")],
) -> None:
    """Write the whole database into one file, also while the backend runs."""
    from backend.upkeep import back_up

    back_up(_settings(), file)


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(help="What `clip-backend backup` has written.")],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what the database holds.")
    ] = False,
) -> None:
    """Put a backup into the database, SQLite or PostgreSQL; the backend must be stopped."""
    from backend.upkeep import restore as restore_backup

    restore_backup(_settings(), file, overwrite=overwrite)


@app.command()
def demo(
    auto: Annotated[
        bool, typer.Option(help="Annotate by itself and print how accuracy rises.")
    ] = False,
    label_studio: Annotated[
        Path, typer.Option(help="The label-studio program; `make demo` installs it.")
    ] = Path(".venv-label-studio/bin/label-studio"),
    folder: Annotated[
        Path, typer.Option(help="Where the demo keeps its data; delete it to start anew.")
    ] = Path("demo-data"),
) -> None:
    """Start a Label Studio with a project of drawn pictures, connected to this backend."""
    from backend.demo.run import run_demo

    raise typer.Exit(run_demo(label_studio=label_studio, folder=folder, auto=auto))


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

    settings = _settings()
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

    settings = _settings()
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
        ),
        classifier,
        active_learning=active_learning,
        limits=assembly.image_limits(settings),
    )
    raise typer.Exit(code)


def _request(project: int, kind: str) -> None:
    from backend.progress import follow
    from backend.store.requests import Kind, Request

    settings = _settings()
    store = _store_of_connected(settings, project)
    store.requests.add(Request(project, Kind(kind)))
    follow(store, settings, project)


def _settings(**overrides: object) -> Settings:
    from backend.logs import configure_logging
    from backend.settings import Settings

    settings = Settings.read(**overrides)
    configure_logging(settings.log_level)
    return settings


def _store(settings: Settings) -> Store:
    from backend.store import Store

    return Store.open(settings.database)


def _store_of_connected(settings: Settings, project: int) -> Store:
    store = _store(settings)
    known = store.projects.get(project)
    if known is None or not known.connected:
        raise SettingsError(
            f"Project {project} is not connected: run `clip-backend connect --project {project}`"
        )
    return store


def _fail(error: ClipBackendError, code: int) -> None:
    typer.secho(f"Error: {error}", err=True, fg=typer.colors.RED)
    sys.exit(code)


if __name__ == "__main__":
    main()

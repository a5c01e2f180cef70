"""Annotations to a published version."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from backend.errors import LabelStudioError
from backend.jobs.services import Services
from backend.labelstudio.acceptance import acceptance_of
from backend.labelstudio.agreement import agreement_of
from backend.labelstudio.annotations import Labels, labels_of, targets_of
from backend.labelstudio.client import RemoteProject, RemoteTask
from backend.labelstudio.config import Control, LabelingConfig, parse_labeling_config
from backend.labelstudio.task_data import with_options
from backend.prediction import fingerprint, fits, learnable, zero_shot_head
from backend.settings import LearningSettings
from backend.store.contents import confusions_to_bytes, labels_to_bytes, left_out_to_bytes
from backend.store.findings import FindingKind
from backend.store.projects import Project
from backend.store.requests import Claim, Kind, Request
from backend.store.tasks import StoredTask, Task
from backend.store.versions import ControlHead, Version, is_ours

if TYPE_CHECKING:
    import torch

    from backend.learning.confusion import Confusion
    from backend.learning.training import Trained

log = logging.getLogger(__name__)

# Tasks that show what the pool is like.
POOL = 2000

# Choices without a label that a report still lists.
LISTED = 1000

# How many labels ahead the report looks.
MORE = 50


def train(services: Services, claim: Claim) -> None:
    """Read a project's annotations, train its heads and publish them as a version.

    Does nothing where the latest version already comes from the same labels, config and settings.
    A pinned version stays the active one, and the latest one is what `versions use latest` goes to.
    """
    store, project_id = services.store, claim.request.project_id
    project = store.projects.get(project_id)
    if project is None or not project.connected:
        return
    remote = remote_project(services, project_id)
    if remote is None:
        return
    if remote.label_config != project.label_config:
        store.projects.update(project_id, label_config=remote.label_config)
        # Another config may look at other pictures of the tasks.
        store.requests.add(Request(project_id, Kind.SYNC))
    config = parse_labeling_config(remote.label_config)
    if not config.controls:
        log.warning("nothing to train project=%d: %s", project_id, config.sentence)
        return
    learning = services.learning.overridden_by(project.extra_params)

    # Taken before the labels are read: what changes meanwhile is found by the next comparison.
    counted = watermark(services, remote)
    # By id: a task that several people annotated is listed several times.
    annotated = list(
        {
            task.id: task
            for page in services.label_studio.annotated_tasks(project_id)
            for task in page
            # One that was only skipped teaches nothing.
            if task.annotation_count
        }.values()
    )
    mark = _learnt(counted, annotated, project.watermark)
    store.tasks.close_all_but(
        project_id,
        {task.id for task in annotated if not task.open},
        transaction=partial(store.requests.holding, claim),
    )
    config = with_options(config, _data(services, project_id, annotated))

    _let_go(services, project, config)
    latest = store.versions.latest(project_id)
    before = {} if latest is None else latest.report
    labelled = {
        control.name: _Labelled(services, control, annotated, before.get(control.name, {}))
        for control in config.controls
    }
    labels = {name: of_control.labels for name, of_control in labelled.items()}
    # A comparison asks for the next training once their pictures can be had.
    left_out = left_out_to_bytes({name: each.left_out for name, each in labelled.items()})
    version = Version(
        project_id=project_id,
        number=0,
        fingerprint=fingerprint(services.predictor.encoder.identity, config, learning, labels),
        encoder=services.predictor.encoder.identity,
        query_strategy=learning.query_strategy.value,
        score=learning.score.value,
        heads={},
        annotations=len(annotated),
    )
    if (
        latest is None
        or latest.fingerprint != version.fingerprint
        or not fits(latest, config, version.encoder)
    ):
        sample = store.tasks.some(project_id, POOL)
        with services.instruments.training():
            trained = {
                name: of_control.train(learning, sample) for name, of_control in labelled.items()
            }
        findings = {
            FindingKind.CONFUSION: confusions_to_bytes(
                {
                    name: each.confusion
                    for name, each in trained.items()
                    if each.confusion is not None
                }
            ),
            FindingKind.LABELS: labels_to_bytes(
                {
                    name: (of_control.control.values, of_control.choices)
                    for name, of_control in labelled.items()
                }
            ),
            FindingKind.LEFT_OUT: left_out,
        }
        version = replace(
            version,
            heads={name: each.head for name, each in trained.items()},
            report={name: each.report for name, each in trained.items()},
        )
        # Together, and only as long as no other worker has read newer labels.
        with store.requests.holding(claim) as connection:
            published = store.versions.publish(version, findings, within=connection)
            store.projects.update(project_id, within=connection, watermark=mark)
        now = store.projects.get(project_id)
        log.info(
            "published project=%d version=%s tasks_annotated=%d labels=%s%s",
            project_id,
            published.name,
            len(annotated),
            ",".join(f"{name}:{len(of_control)}" for name, of_control in labels.items()),
            f" not used: pinned to {now.pinned}" if now is not None and now.pinned else "",
        )
    else:
        # Annotators can come to agree or disagree without a label that changes.
        additions = {
            name: each.people | {"without_picture": len(each.left_out)}
            for name, each in labelled.items()
        }
        findings = {FindingKind.LEFT_OUT: left_out}
        with store.requests.holding(claim) as connection:
            store.versions.amend(latest, additions, within=connection)
            store.findings.keep(project_id, latest.name, findings, within=connection)
            store.projects.update(project_id, within=connection, watermark=mark)
    store.requests.add(Request(project_id, Kind.REFRESH))


def _learnt(counted: list[Any], annotated: list[RemoteTask], before: list[Any] | None) -> list[Any]:
    """Return the watermark of what was read, if less than Label Studio counted.

    So the next comparison has it read again, and what comes out the same then is all there is.
    """
    tasks, annotations, changed = counted
    read = [tasks, min(annotations, sum(task.annotation_count for task in annotated)), changed]
    return counted if read == before else read


def _data(
    services: Services, project_id: int, annotated: list[RemoteTask]
) -> Iterator[Mapping[str, object]]:
    """Yield the data of a project's tasks, those that teach something first."""
    for task in sorted(annotated, key=attrgetter("id")):
        yield task.data
    for page in services.store.tasks.all(project_id):
        for stored in page:
            yield stored.data


def _let_go(services: Services, project: Project, config: LabelingConfig) -> None:
    """Unpin a version that cannot predict what is asked for any more."""
    versions = services.store.versions
    active = versions.active(project.id)
    if project.pinned is None or active is None:
        return
    if not fits(active, config, services.predictor.encoder.identity):
        log.warning(
            "unpinned project=%d version=%s: the labeling config or CLIP has changed, and it does "
            "not fit any more; the latest version is used again",
            project.id,
            project.pinned,
        )
        versions.unpin(project.id, project.pinned)


def remote_project(services: Services, project_id: int) -> RemoteProject | None:
    """Return Label Studio's view of a project; forgets one that Label Studio no longer has."""
    try:
        return services.label_studio.project(project_id)
    except LabelStudioError as error:
        if error.label_studio_status != 404 or not services.label_studio.lacks_project(project_id):
            raise
    services.store.forget(project_id)
    log.info("project is gone from Label Studio project=%d", project_id)
    return None


def watermark(services: Services, remote: RemoteProject) -> list[Any]:
    """Return what tells, cheaply, whether annotations or tasks have changed."""
    return [
        remote.task_count,
        remote.annotation_count,
        services.label_studio.last_change(remote.id),
    ]


@dataclass(frozen=True)
class _Learnt:
    """What the labels of one control give; `confusion` where there are enough of them."""

    head: ControlHead
    report: dict[str, Any]
    confusion: Confusion | None


class _Labelled:
    """The labelled set of one control."""

    def __init__(
        self,
        services: Services,
        control: Control,
        annotated: list[RemoteTask],
        before: dict[str, Any],
    ) -> None:
        self._predictor = services.predictor
        annotations = {task.id: task.annotations for task in annotated}
        self._labels: Labels = labels_of(control, annotations)
        labelled = frozenset(chain.from_iterable(self._labels.values.values()))
        self.control = learnable(control, labelled)
        self.people = {
            "agreement": agreement_of(control, annotations),
            "acceptance": acceptance_of(control, annotated, is_ours, before.get("acceptance")),
        }
        tasks = [Task(task.id, task.data) for task in annotated if task.id in self._labels.values]
        # By id: the same labels give the same head, in whatever order they are listed.
        tasks.sort(key=lambda task: task.id or 0)
        self._ids, self._vectors = services.predictor.embedder.vectors_of(tasks, control)
        self.choices = {task_id: self._labels.values[task_id] for task_id in self._ids}
        self.labels = {
            task.id: (services.predictor.embedder.picture(task, control), self.choices[task.id])
            for task in tasks
            if task.id in self.choices
        }
        self.left_out = self._labels.values.keys() - self.choices.keys()

    def train(self, learning: LearningSettings, sample: list[StoredTask]) -> _Learnt:
        """Return the head that the labels give for what is like the sample, and how good it is."""
        from backend.clip.hardware import device_of_trainings
        from backend.learning.confusion import confusion
        from backend.learning.label_errors import suspected_labels
        from backend.learning.training import Trained, train

        encoder = self._predictor.encoder
        device = device_of_trainings(encoder.device)
        zero_shot = zero_shot_head(encoder, self.control, learning)
        trained = Trained(zero_shot.head.to(device))
        targets = targets_of(self.control, [self.choices[task_id] for task_id in self._ids])
        ids, pool = self._predictor.embedder.vectors_of(sample, self.control, fetch=False)
        pool = pool.to(device)
        if len(self._ids) >= learning.min_annotations:
            trained = train(
                self._vectors.to(device),
                targets.to(device),
                trained.head,
                pool=pool if len(pool) else None,
            )
        report = self._counts() | self.people
        confused = None
        if trained.evaluation is not None and trained.out_of_fold is not None:
            report["temperature"] = trained.temperature
            report["out_of_fold"] = asdict(trained.evaluation)
            judged = trained.out_of_fold.cpu(), targets, self._ids, self.control.values
            report["suspects"] = suspected_labels(*judged, multiple=self.control.multiple)
            confused = confusion(*judged, multiple=self.control.multiple)
            open_ids = {task.id for task in sample if task.open}
            open_pool = pool[[row for row, task_id in enumerate(ids) if task_id in open_ids]]
            if len(open_pool):
                report |= _outlook(trained, targets, open_pool)
        # What scores tasks is on the CPU, beside the store's vectors.
        head = ControlHead(zero_shot.values, trained.head.to("cpu"))
        return _Learnt(head, report, confused)

    def _counts(self) -> dict[str, Any]:
        per_choice = Counter(chain.from_iterable(self.choices.values()))
        if len(self.control.choices) <= LISTED:
            per_choice = Counter({value: per_choice[value] for value in self.control.values})
        return {
            "labels": len(self._ids),
            "choices": len(self.control.choices),
            "per_choice": per_choice,
            "ties": self._labels.ties,
            "unknown_choices": self._labels.unknown,
            "several_choices": self._labels.several,
            "without_picture": len(self.left_out),
        }


def _outlook(trained: Trained, targets: torch.Tensor, pool: torch.Tensor) -> dict[str, Any]:
    from backend.learning.estimation import advice, outlook

    probabilities = trained.head.probabilities(pool)
    accuracy, gain = outlook(trained, targets.to(probabilities.device), probabilities, MORE)
    return {
        "pool_accuracy": asdict(accuracy),
        "gain": {"labels": MORE, **asdict(gain)},
        "advice": advice(gain, MORE),
    }

"""What a job works with, made once a worker process and handed to each job."""

from __future__ import annotations

import threading
from contextvars import ContextVar
from dataclasses import dataclass, field

from backend.instruments import Instruments
from backend.labelstudio.client import LabelStudio
from backend.prediction import Predictor
from backend.settings import LearningSettings
from backend.store import Store
from backend.telemetry import Span, no_span


@dataclass(frozen=True)
class Services:
    """The parts that jobs share.

    `learning` is what a project without extra params gets; `keep_unused` how many seconds pictures
    are kept that no task refers to; `stopping` asks a long job to leave the
    rest to another worker; `slow_imports` are the projects whose predictions Label Studio was seen
    to import slowly; `span` traces a job.
    """

    store: Store
    label_studio: LabelStudio
    predictor: Predictor
    learning: LearningSettings
    reconcile_every: float
    keep_unused: float
    stopping: threading.Event = field(default_factory=threading.Event)
    slow_imports: set[int] = field(default_factory=set)
    instruments: Instruments = field(default_factory=Instruments)
    span: Span = no_span


# RQ calls a job by its dotted name and passes JSON: a job finds the services of its worker here.
current_services: ContextVar[Services] = ContextVar("current_services")

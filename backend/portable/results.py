"""What a model says of pictures: a table, or tasks for Label Studio."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Sequence
from io import TextIOWrapper
from typing import BinaryIO, Protocol
from urllib.parse import quote

from backend.errors import ModelError
from backend.labelstudio.config import LabelingConfig
from backend.prediction import Prediction, Predictor
from backend.results import chosen_by
from backend.store.tasks import Task
from backend.store.versions import Version

COLUMNS = ("path", "control", "choice", "probability", "uncertainty", "error")

_FIELD = re.compile(r"\$(\w+)", re.ASCII)


class Results(Protocol):
    """A file of results that is written as they come."""

    def add(self, predictor: Predictor, names: Sequence[str], tasks: Sequence[Task]) -> list[str]:
        """Write what is said of some pictures; return for each why nothing is, or ''."""

    def end(self) -> None:
        """Write what comes last."""


class Table:
    """A CSV: a row a picture and control, or with `multiple` a row a choice that applies.

    A picture to which no choice applies, and one that cannot be read, has a row without one.
    """

    def __init__(self, file: BinaryIO, config: LabelingConfig, version: Version) -> None:
        self._config = config
        self._version = version
        # A file's name may be bytes that are no text, and is written as it is.
        self._text = TextIOWrapper(file, "utf-8", errors="surrogateescape", newline="")
        self._rows = csv.writer(self._text)
        self._rows.writerow(COLUMNS)

    def add(self, predictor: Predictor, names: Sequence[str], tasks: Sequence[Task]) -> list[str]:
        """Write what is said of some pictures; return for each why nothing is, or ''."""
        scores = predictor.score(tasks, self._config, self._version)
        errors = [str(error) for error in scores.errors]
        row_of = {index: row for row, index in enumerate(scores.usable)}
        for index, name in enumerate(names):
            if index not in row_of:
                self._rows.writerow((name, "", "", "", "", errors[index]))
                continue
            errors[index] = ""
            for control, probabilities, uncertainties in zip(
                self._config.controls, scores.probabilities, scores.uncertainties, strict=True
            ):
                values = self._version.heads[control.name].values
                row = probabilities[row_of[index]]
                uncertainty = f"{uncertainties[row_of[index]].item():.6f}"
                for chosen in chosen_by(control, row):
                    said = (values[chosen], f"{row[chosen]:.6f}", uncertainty)
                    self._rows.writerow((name, control.name, *said, ""))
                if not len(chosen_by(control, row)):
                    self._rows.writerow((name, control.name, "", "", uncertainty, ""))
        return errors

    def end(self) -> None:
        """Hand everything to the file, which stays open."""
        self._text.detach()


class LabelStudioTasks:
    """Label Studio's JSON: tasks with predictions, whose pictures are files that it serves itself.

    Their addresses are `/data/local-files/?d=FOLDER/…`, FOLDER being the name of the pictures'
    folder. Pictures that cannot be read are left out.
    """

    def __init__(
        self, file: BinaryIO, config: LabelingConfig, version: Version, fields: Sequence[str]
    ) -> None:
        self._file = file
        self._config = config
        self._version = version
        self._fields = fields
        self._separator = b"[\n"

    def add(self, predictor: Predictor, names: Sequence[str], tasks: Sequence[Task]) -> list[str]:
        """Write what is said of some pictures; return for each why nothing is, or ''."""
        errors = []
        for name, outcome in zip(
            names, predictor.predict(tasks, self._config, self._version), strict=True
        ):
            if not isinstance(outcome, Prediction):
                errors.append(str(outcome))
                continue
            errors.append("")
            address = f"/data/local-files/?d={quote(os.fsencode(name))}"
            task = {
                "data": dict.fromkeys(self._fields, address),
                "predictions": [
                    {
                        "model_version": outcome.model_version,
                        "score": outcome.score,
                        "result": outcome.result,
                    }
                ],
            }
            self._file.write(self._separator + json.dumps(task, ensure_ascii=False).encode())
            self._separator = b",\n"
        return errors

    def end(self) -> None:
        """Close the list."""
        self._file.write((b"[" if self._separator == b"[\n" else b"\n") + b"]\n")


def image_fields(config: LabelingConfig) -> list[str]:
    """Return the fields of a task's data that its pictures are in.

    Raises ModelError for a labeling config in which a picture is more than one field.
    """
    fields = []
    for control in config.controls:
        field = _FIELD.fullmatch(control.image)
        if field is None:
            raise ModelError(
                f'Label Studio\'s tasks cannot be written for <Image value="{control.image}">, '
                'which is more than a field such as "$image": write a .csv'
            )
        fields.append(field[1])
    return list(dict.fromkeys(fields))

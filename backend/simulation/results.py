"""What a simulation keeps on disk, so that it goes on where it was stopped."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from backend.errors import SettingsError
from backend.simulation.atomic import replacing
from backend.simulation.experiment import Result

COLUMNS = tuple(field.name for field in fields(Result))
_PARSERS = tuple(
    {"int": int, "float": float, "str": str}[str(field.type)] for field in fields(Result)
)


class Results:
    """Rows in a CSV file that is whole at any moment, sorted by strategy, run and iteration.

    Raises SettingsError where the file holds something else.
    """

    def __init__(self, path: Path, strategies: Sequence[str]) -> None:
        self.path = path
        self._order = {name: position for position, name in enumerate(strategies)}
        self._rows: dict[tuple[int, int, int], Result] = {}
        self._lines: dict[tuple[int, int, int], str] = {}
        try:
            for cells in _read(path) if path.exists() else ():
                self._keep(cells)
        except (ValueError, LookupError, OSError):
            raise SettingsError(
                f"{path} is not a table of these results: choose another --out or --results"
            ) from None

    def rows(self) -> list[Result]:
        """Return all rows, sorted."""
        return [self._rows[key] for key in sorted(self._rows)]

    def of(self, strategy: str, run: int) -> list[Result]:
        """Return the rows of a run of a strategy, sorted."""
        return [row for row in self.rows() if (row.strategy, row.run) == (strategy, run)]

    def add(self, row: Result) -> None:
        """Keep a row, in the place of an earlier one of the same iteration."""
        self._keep([_cell(value) for value in astuple(row)])
        lines = [",".join(COLUMNS), *(self._lines[key] for key in sorted(self._lines))]
        with replacing(self.path) as file:
            file.write("".join(f"{line}\n" for line in lines).encode())

    def _keep(self, cells: Sequence[str]) -> None:
        # From the text also where the numbers are at hand: a report does not depend on whether
        # there was a stop.
        values = (parse(cell or "nan") for parse, cell in zip(_PARSERS, cells, strict=True))
        row = Result(*values)
        key = self._order[row.strategy], row.run, row.iteration
        self._rows[key] = row
        self._lines[key] = ",".join(cells)


class Identity(BaseModel):
    """What an experiment is: more strategies, runs or iterations add to it, all else is another.

    Attributes
    ----------
    data : str
        Stands for the data, the encoder and the release.
    options : dict of an option's name to its JSON value

    """

    model_config = ConfigDict(frozen=True)

    data: str
    options: dict[str, Any]

    def added_to(self, path: Path, results: Path) -> Identity:
        """Return this with the strategies that the experiment kept at `path` had before.

        Raises SettingsError where another one is kept there, or none is but has rows in `results`.
        """
        if not path.exists():
            if results.exists():
                raise SettingsError(
                    f"{results} exists, but {path} does not say what it holds: "
                    "choose another --out or --results"
                )
            return self
        try:
            kept = Identity.model_validate_json(path.read_bytes())
        except (ValidationError, OSError):
            raise SettingsError(
                f"{path} is not what a simulation keeps: choose another --out"
            ) from None
        if kept.data != self.data:
            raise SettingsError(
                f"{path.parent} was begun with other data, another CLIP or another release: "
                "choose another --out"
            )
        for name, value in self.options.items():
            before = kept.options.get(name)
            grows = name in ("runs", "iterations") and value >= before
            if name != "strategy" and value != before and not grows:
                raise SettingsError(
                    f"--{name} was {_shown(before)} in {path.parent} and cannot become "
                    f"{_shown(value)}: choose another --out"
                )
        strategies = dict.fromkeys([*kept.options["strategy"], *self.options["strategy"]])
        return Identity(data=self.data, options=self.options | {"strategy": list(strategies)})

    def keep(self, path: Path) -> None:
        """Write this to `path`; raises DatasetError where that is impossible."""
        with replacing(path) as file:
            file.write(self.model_dump_json(indent=1).encode())


def _cell(value: int | float | str) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6f}"
    return str(value)


def _read(path: Path) -> Iterator[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        lines = csv.reader(file)
        if tuple(next(lines, ())) != COLUMNS:
            raise ValueError("other columns")
        yield from lines


def _shown(value: Any) -> str:
    return "not given" if value is None else str(value)

"""What findings contain, as bytes and back: JSON, and safetensors for a map of many tasks."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from backend.learning.confusion import Confusion

# Of a task on a map for which no choice is known.
NO_CHOICE = -1


@dataclass(frozen=True)
class GivenLabels:
    """What people gave to the tasks of one control: of several choices the config's first.

    `given` are places in `choices`, the values that were given at all.
    """

    choices: Sequence[str]
    tasks: Sequence[int]
    given: Sequence[int]


@dataclass(frozen=True)
class QueuedTask:
    """An open task near the head of the queue.

    `confidence` is what orders the queue; `likeliest` are, by control, the choices with the
    highest probabilities, the highest first.
    """

    task: int
    confidence: float
    likeliest: Mapping[str, Sequence[tuple[str, float]]]


@dataclass(frozen=True)
class MapColours:
    """What one control says of the tasks on a map.

    `given` and `predicted` [N] are places in `values`, or `NO_CHOICE`.
    """

    values: Sequence[str]
    given: NDArray[np.int32]
    predicted: NDArray[np.int32]


@dataclass(frozen=True)
class EmbeddingMap:
    """Where tasks are on the map of a project's embeddings, and what is known of them.

    Attributes
    ----------
    source : str
        The encoder and which pictures: places of other ones are not comparable.
    rounds : int
        How many it was drawn in so far.
    done : bool
        Whether it needs no more of them.
    tasks : int
        How many the project had, on the map or not.
    ids : int64 [N]
    places : float32 [N, 2]
    uncertainties : float32 [N]
        In [0, 1].
    colours : by control

    """

    source: str
    rounds: int
    done: bool
    tasks: int
    ids: NDArray[np.int64]
    places: NDArray[np.float32]
    uncertainties: NDArray[np.float32]
    colours: Mapping[str, MapColours]


def confusions_to_bytes(confusions: Mapping[str, Confusion]) -> bytes:
    """Return the confusions of controls as JSON."""
    return _to_json(confusions)


def confusions_from_bytes(data: bytes) -> dict[str, Confusion]:
    """Return what `confusions_to_bytes` was given."""
    found: dict[str, Confusion] = json.loads(data)
    return found


def labels_to_bytes(
    labels: Mapping[str, tuple[Sequence[str], Mapping[int, frozenset[str]]]],
) -> bytes:
    """Return, as JSON, what was given by control: all its choices, and those of each task."""
    return _to_json(
        {name: asdict(_given(values, chosen)) for name, (values, chosen) in labels.items()}
    )


def labels_from_bytes(data: bytes) -> dict[str, GivenLabels]:
    """Return what `labels_to_bytes` was given, of several choices the first."""
    return {name: GivenLabels(**labels) for name, labels in json.loads(data).items()}


def left_out_to_bytes(tasks: Mapping[str, Collection[int]]) -> bytes:
    """Return, as JSON, the tasks by control whose labels were left out for their pictures."""
    return _to_json({name: sorted(of_control) for name, of_control in tasks.items()})


def left_out_from_bytes(data: bytes) -> dict[str, list[int]]:
    """Return what `left_out_to_bytes` was given."""
    left_out: dict[str, list[int]] = json.loads(data)
    return left_out


def queue_to_bytes(head: Sequence[QueuedTask]) -> bytes:
    """Return the head of a queue as JSON."""
    return _to_json([asdict(task) for task in head])


def queue_from_bytes(data: bytes) -> list[QueuedTask]:
    """Return what `queue_to_bytes` was given."""
    return [QueuedTask(**task) for task in json.loads(data)]


def map_to_bytes(drawn: EmbeddingMap) -> bytes:
    """Return a map as a safetensors file; the tensors of the n-th control begin with `n.`."""
    from safetensors.numpy import save

    # Control names are hostile input and stay out of tensor names.
    tensors: dict[str, NDArray[Any]] = {
        "ids": drawn.ids,
        "places": np.ascontiguousarray(drawn.places),
        "uncertainties": drawn.uncertainties,
    }
    for index, colours in enumerate(drawn.colours.values()):
        tensors[f"{index}.given"] = colours.given
        tensors[f"{index}.predicted"] = colours.predicted
    controls = [
        {"name": name, "values": [*colours.values]} for name, colours in drawn.colours.items()
    ]
    facts = {
        "source": drawn.source,
        "rounds": drawn.rounds,
        "done": drawn.done,
        "tasks": drawn.tasks,
        "controls": controls,
    }
    data: bytes = save(tensors, metadata={"map": json.dumps(facts)})
    return data


def map_from_bytes(data: bytes) -> EmbeddingMap:
    """Return what `map_to_bytes` was given."""
    from safetensors.numpy import load

    tensors = load(data)
    header_size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + header_size])
    facts = json.loads(header["__metadata__"]["map"])
    controls = facts.pop("controls")
    return EmbeddingMap(
        **facts,
        ids=tensors["ids"],
        places=tensors["places"],
        uncertainties=tensors["uncertainties"],
        colours={
            control["name"]: MapColours(
                control["values"], tensors[f"{index}.given"], tensors[f"{index}.predicted"]
            )
            for index, control in enumerate(controls)
        },
    )


def _given(values: Sequence[str], chosen: Mapping[int, frozenset[str]]) -> GivenLabels:
    order = {value: index for index, value in enumerate(values)}
    first = {task: min(given, key=order.__getitem__) for task, given in chosen.items() if given}
    choices = sorted(set(first.values()), key=order.__getitem__)
    place = {value: index for index, value in enumerate(choices)}
    return GivenLabels(choices, [*first], [place[value] for value in first.values()])


def _to_json(content: object) -> bytes:
    # ASCII: names may hold halves of surrogate pairs.
    return json.dumps(content, separators=(",", ":")).encode("ascii")

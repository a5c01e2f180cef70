from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from backend.learning.head import Head
from backend.store import Store
from backend.store.standings import ControlStanding
from backend.store.versions import KEPT, ControlHead, Version, is_ours

PROJECT = 7
HOSTILE = (
    "__metadata__",
    "0.weights",
    "",
    'a"b\\c',
    "../../etc",
    "日本 🧵",
    "a\x00b",
    "x" * 10_000,
    "\ud800",
)


def head(choices: int = 2, *, multiple: bool = False, seed: int = 0) -> Head:
    generator = torch.Generator().manual_seed(seed)
    return Head(
        weights=torch.randn(choices, 8, generator=generator),
        bias=torch.randn(choices, generator=generator),
        multiple=multiple,
    )


def version(project_id: int = PROJECT, **changes: Any) -> Version:
    values: dict[str, Any] = {
        "project_id": project_id,
        "number": 0,
        "fingerprint": "0123456789abcdef" * 4,
        "encoder": "tiny-0123-float32",
        "query_strategy": "margin",
        "score": "confidence",
        "heads": {"kind": ControlHead(("Tee", "Shoe"), head())},
        "annotations": 12,
        "report": {"kind": {"labels": 12}},
    }
    return Version(**(values | changes))


def test_a_project_without_a_version_has_no_active_one(store: Store) -> None:
    store.projects.set_up(PROJECT)

    assert store.versions.active(PROJECT) is None
    assert store.versions.names(PROJECT) == []


def test_a_published_version_is_the_active_one(store: Store) -> None:
    store.projects.set_up(PROJECT)

    published = store.versions.publish(version())

    active = store.versions.active(PROJECT)
    project = store.projects.get(PROJECT)
    assert published.number == 1
    assert published.name == "clip-backend-1-01234567"
    assert project is not None
    assert project.model_version == published.name
    assert active is not None
    assert (active.number, active.name, active.annotations) == (1, published.name, 12)
    assert active.report == {"kind": {"labels": 12}}
    assert active.created_at == published.created_at


def test_the_next_version_gets_the_next_number_and_takes_over(store: Store) -> None:
    store.projects.set_up(PROJECT)
    store.projects.set_up(8)

    names = [store.versions.publish(version()).name for _ in range(3)]
    other = store.versions.publish(version(8))

    active = store.versions.active(PROJECT)
    assert active is not None
    assert active.number == 3
    assert store.versions.names(PROJECT) == names[::-1]
    assert other.number == 1
    assert set(store.versions.names()) == {*names, other.name}


def test_heads_come_back_to_the_last_bit(store: Store) -> None:
    store.projects.set_up(PROJECT)
    heads = {
        "single": ControlHead(("Tee", "Shoe", "Hat"), head(3, seed=1)),
        "multiple": ControlHead(("wet",), head(1, multiple=True, seed=2)),
    }

    store.versions.publish(version(heads=heads))

    active = store.versions.active(PROJECT)
    assert active is not None
    assert list(active.heads) == ["single", "multiple"]
    for name, control in heads.items():
        found = active.heads[name]
        assert found.values == control.values
        assert found.head.multiple == control.head.multiple
        assert torch.equal(found.head.weights, control.head.weights)
        assert torch.equal(found.head.bias, control.head.bias)


def test_any_names_of_controls_and_choices_can_be_kept(store: Store) -> None:
    store.projects.set_up(PROJECT)
    heads = {
        name: ControlHead((name, f"{name}!"), head(seed=seed)) for seed, name in enumerate(HOSTILE)
    }

    store.versions.publish(version(heads=heads))

    active = store.versions.active(PROJECT)
    assert active is not None
    assert {name: control.values for name, control in active.heads.items()} == {
        name: control.values for name, control in heads.items()
    }
    assert all(
        torch.equal(active.heads[name].head.weights, control.head.weights)
        for name, control in heads.items()
    )


def test_a_slice_of_a_larger_tensor_can_be_kept(store: Store) -> None:
    store.projects.set_up(PROJECT)
    wide = torch.randn(4, 8)
    heads = {"kind": ControlHead(("a", "b"), Head(wide[::2], wide[:2, 0], multiple=False))}

    store.versions.publish(version(heads=heads))

    active = store.versions.active(PROJECT)
    assert active is not None
    assert torch.equal(active.heads["kind"].head.weights, wide[::2])


def test_publishers_at_the_same_time_get_numbers_of_their_own(store: Store) -> None:
    store.projects.set_up(PROJECT)
    barrier = threading.Barrier(4)
    published: list[Version] = []
    errors: list[Exception] = []

    def publish() -> None:
        barrier.wait()
        try:
            for _ in range(5):
                published.append(store.versions.publish(version()))
        except Exception as error:  # noqa: BLE001 — shown by the assertion below
            errors.append(error)

    threads = [threading.Thread(target=publish) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    assert sorted(each.number for each in published) == list(range(1, 21))
    active = store.versions.active(PROJECT)
    assert active is not None
    assert active.number == 20


def test_old_versions_are_dropped(store: Store) -> None:
    store.projects.set_up(PROJECT)

    for _ in range(KEPT + 3):
        store.versions.publish(version())

    names = store.versions.names(PROJECT)
    assert len(names) == KEPT
    assert names[0].startswith(f"clip-backend-{KEPT + 3}-")
    assert names[-1].startswith("clip-backend-4-")


def test_the_newest_versions_are_told_by_what_they_know_of_each_control(store: Store) -> None:
    store.projects.set_up(PROJECT)
    known = {"labels": 12, "out_of_fold": {"top1": 0.75}, "suspects": [{"task": 1}]}
    reports: list[dict[str, Any]] = [{}, {"kind": {}}, {"b": known, "a": {"labels": 3}}]
    published = [store.versions.publish(version(report=report)) for report in reports]

    newest = store.standings.newest(PROJECT, 2)

    assert [each.name for each in newest] == [published[2].name, published[1].name]
    assert [each.controls for each in store.standings.newest(PROJECT, 9)] == [
        (ControlStanding("b", 12, 0.75), ControlStanding("a", 3, None)),
        (ControlStanding("kind", None, None),),
        (),
    ]
    assert store.standings.newest(PROJECT + 1, 9) == []


def test_the_active_and_the_latest_version_are_summed_up_without_their_heads(store: Store) -> None:
    store.projects.set_up(PROJECT)
    assert store.versions.active_summary(PROJECT) is None
    assert store.versions.latest_summary(PROJECT) is None
    first, second = (store.versions.publish(version(annotations=n)) for n in (1, 2))

    store.versions.pin(PROJECT, first.name)

    active, latest = store.versions.active_summary(PROJECT), store.versions.latest_summary(PROJECT)
    assert active is not None
    assert latest is not None
    assert (active.name, active.annotations) == (first.name, 1)
    assert (latest.name, latest.report) == (second.name, second.report)


def test_forgetting_drops_a_project_s_versions_alone(store: Store) -> None:
    for project_id in (PROJECT, 8):
        store.projects.set_up(project_id)
        store.versions.publish(version(project_id))

    store.versions.forget(PROJECT)

    assert store.versions.active(PROJECT) is None
    assert store.versions.active(8) is not None


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("clip-backend-1-01234567", True),
        ("clip-backend-123-deadbeef", True),
        ("clip-backend", False),
        ("clip-backend-1-0123456", False),
        ("clip-backend-1-01234567-mine", False),
        ("my-clip-backend-1-01234567", False),
        ("clip-backend-1-01234567\n", False),
        ("CLIP", False),
        ("", False),
    ],
)
def test_only_names_that_this_backend_gives_are_taken_for_its_own(name: str, ours: bool) -> None:
    assert is_ours(name) is ours

from __future__ import annotations

import base64

import pytest

from backend.page.links import LabelStudioLinks
from backend.page.wording import as_utc, shown

LINKS = LabelStudioLinks("https://labels.example.com/studio")


def test_tasks_and_projects_are_found_under_label_studio_s_address() -> None:
    assert LINKS.data_manager(7) == "https://labels.example.com/studio/projects/7/data"
    assert LINKS.task(7, 3) == "https://labels.example.com/studio/projects/7/data?task=3"
    assert LINKS.origin == "https://labels.example.com"


def test_without_label_studio_s_address_there_is_nothing_to_link_to() -> None:
    nowhere = LabelStudioLinks(None)

    assert nowhere.data_manager(7) is nowhere.task(7, 3) is nowhere.origin is None
    assert nowhere.picture(3, "/data/upload/7/a.png") is None


@pytest.mark.parametrize(
    ("source", "address"),
    [
        ("/data/upload/7/a b.png", "/data/upload/7/a%20b.png"),
        ("/data/local-files/?d=a/b.png", "/data/local-files/?d=a/b.png"),
        ('/data/"><script>', "/data/%22%3E%3Cscript%3E"),
    ],
)
def test_a_picture_of_label_studio_is_asked_of_it(source: str, address: str) -> None:
    assert LINKS.picture(3, source) == f"https://labels.example.com/studio{address}"


@pytest.mark.parametrize("source", ["s3://bucket/a.png", "gs://b/ä.png", "azure-blob://c/\ud800"])
def test_a_picture_in_a_cloud_is_resolved_by_label_studio(source: str) -> None:
    address = LINKS.picture(3, source)

    assert address is not None
    resolve, _, uri = address.partition("?fileuri=")
    assert resolve == "https://labels.example.com/studio/tasks/3/resolve/"
    assert base64.urlsafe_b64decode(uri).decode() == source.replace("\ud800", "?")


def test_a_picture_on_the_web_is_where_it_is() -> None:
    assert LINKS.picture(3, "https://pictures.example.com/a.png") == (
        "https://pictures.example.com/a.png"
    )


@pytest.mark.parametrize(
    "source",
    [
        "javascript:alert(1)",
        "java\tscript:alert(1)",
        "JavaScript://x/%0aalert(1)",
        "data:text/html,<script>",
        "vbscript:x",
        "file:///etc/passwd",
        "blob:https://labels.example.com/1",
        "//evil.example/a.png",
        "https:",
        "http://[::1",
        "picture.png",
        "",
    ],
)
def test_nothing_else_is_an_address(source: str) -> None:
    assert LINKS.picture(3, source) is None


@pytest.mark.parametrize(
    ("name", "as_shown"),
    [
        ("a cup", "a cup"),
        ("x" * 80, "x" * 80),
        ("x" * 5000, "x" * 39 + "…" + "x" * 40),
        (f"{'x' * 5000} / leaf", "x" * 39 + "…" + "x" * 33 + " / leaf"),
        ("a\u202egnp", "a gnp"),
        ("a\0\n\u2028b", "a   b"),
        ("\ud800", " "),
        (7, "7"),
    ],
)
def test_a_name_is_shown_short_and_with_nothing_unseen(name: object, as_shown: str) -> None:
    assert shown(name) == as_shown


def test_a_time_is_written_so_that_a_browser_can_read_it() -> None:
    assert as_utc(0) == "1970-01-01T00:00:00Z"

"""No request makes the API fail, or answer what it does not describe, or forget how to predict."""

from __future__ import annotations

import json
import logging

import pytest
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backend.api import load
from backend.logs import configure_logging
from backend.store import Store
from tests.integration import hostile, page_parts
from tests.integration.conftest import StartApp
from tests.integration.hostile import CONFIG, RED, Answer, Expected, Hostile, choices, send
from tests.integration.page_parts import publish, with_page

thorough = settings(
    max_examples=300,
    deadline=None,
    database=None,
    suppress_health_check=[*HealthCheck],
)


@pytest.fixture
def app(start_app: StartApp) -> Flask:
    return start_app(image_timeout=1.0)


def post(app: Flask, path: str, **body: object) -> Answer:
    return send(app, Hostile(path, json.dumps(body).encode()))


def refused(answer: Answer, status: int = 400) -> str:
    assert answer.status == status, answer
    error = json.loads(answer.body)["error"]
    assert isinstance(error, str)
    return error


@pytest.mark.parametrize("path", hostile.PATHS)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_hostile_request_is_answered_as_described_and_changes_no_prediction(
    app: Flask, path: str
) -> None:
    expected = Expected(app)

    @thorough
    @given(hostile.requests_to(path))
    def check(request: Hostile) -> None:
        expected.check(request, send(app, request))
        expected.check_prediction()

    check()


@pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)
def test_a_hostile_form_is_refused_or_done_and_never_a_server_s_error(
    app: Flask, store: Store
) -> None:
    client = with_page(app, store)
    for _ in range(2):
        publish(store, {}, labels=("red", "green"))
    seen = set()

    @thorough
    @given(hostile.requests_to_the_page())
    def check(request: Hostile) -> None:
        answer = send(client.application, request)
        seen.add(answer.status)
        assert answer.status < 500, answer
        assert answer.reason.isascii()
        project = store.projects.get(page_parts.PROJECT)
        assert project is not None
        assert project.model_version in store.versions.names(project.id)

    check()

    assert seen >= {303, 403, 404, 413}


@pytest.mark.parametrize("path", ["/predict", "/setup", "/webhook"])
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_postgresql_takes_what_sqlite_takes(app: Flask, path: str) -> None:
    expected = Expected(app)

    @settings(thorough, max_examples=100)
    @given(hostile.requests_to(path))
    def check(request: Hostile) -> None:
        expected.check(request, send(app, request))

    check()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
class TestLabelingConfigs:
    @pytest.mark.parametrize("config", hostile.ODD_CONFIGS, ids=lambda config: config[:40])
    def test_each_odd_one_is_answered_by_all_who_read_one(self, app: Flask, config: str) -> None:
        expected = Expected(app)
        tasks = [{"id": 1, "data": {"image": RED}}]
        for path, body in {
            "/validate": {"config": config},
            "/setup": {"project": 7, "schema": config},
            "/webhook": {"action": "X", "project": {"id": 9, "label_config": config}},
            "/predict": {"tasks": tasks, "label_config": config},
        }.items():
            request = Hostile(path, json.dumps(body).encode())
            expected.check(request, send(app, request))
        expected.check_prediction()

    def test_ten_thousand_choices_are_predicted(self, app: Flask) -> None:
        config = choices([f"class {n}" for n in range(10_000)])

        answer = post(app, "/predict", tasks=[{"data": {"image": RED}}], label_config=config)

        assert answer.status == 200
        assert "result" in json.loads(answer.body)["results"][0]

    def test_more_than_twenty_thousand_choices_are_refused(self, app: Flask) -> None:
        config = choices([f"{n}" for n in range(20_001)])

        assert "20000 choices" in refused(post(app, "/validate", config=config))

    def test_more_than_500_controls_are_refused(self, app: Flask) -> None:
        control = '<Choices name="c{}" toName="i"><Choice value="a"/><Choice value="b"/></Choices>'
        controls = "".join(control.format(n) for n in range(501))
        config = f'<View><Image name="i" value="$i"/>{controls}</View>'

        assert "500 <Choices>" in refused(post(app, "/validate", config=config))

    def test_more_names_than_clip_can_read_are_refused(self, app: Flask) -> None:
        names = ",".join(f"{n}" for n in range(40_001))
        config = choices(["a", "b"]).replace("/><Choice", f' predicted_values="{names}"/><Choice')

        assert "names" in refused(post(app, "/validate", config=config))

    def test_choices_within_choices_are_left_alone(self, app: Flask) -> None:
        inner = choices(["a", "b"])
        nested = inner.replace("</View>", "").replace("</Choices>", "")
        more = '<Choices name="inner" toName="image"><Choice value="c"/></Choices>'
        config = f"{nested}{more}</Choices></View>"

        answer = json.loads(post(app, "/validate", config=config).body)

        assert "it holds another <Choices>" in answer["message"]

    def test_a_sentence_names_a_few_of_many_controls(self, app: Flask) -> None:
        controls = "".join(f'<Rating name="r{n}" toName="i"/>' for n in range(1_000))

        answer = json.loads(post(app, "/validate", config=f"<View>{controls}</View>").body)

        assert "(and 980 more)" in answer["message"]
        assert len(answer["message"]) < 3_000

    def test_an_address_put_together_from_fields_has_an_end(self, app: Flask) -> None:
        config = CONFIG.replace("$image", "$image" * 20)
        tasks = [{"data": {"image": "x" * 10_000}}]

        answer = json.loads(post(app, "/predict", tasks=tasks, label_config=config).body)

        assert "100000 characters" in answer["results"][0]["error"]

    def test_a_long_word_is_read_no_further_than_clip_can(self, app: Flask) -> None:
        config = choices(["a" * 200_000, "b" * 200_000])

        answer = post(app, "/predict", tasks=[{"data": {"image": RED}}], label_config=config)

        assert answer.status == 200

    def test_a_webhook_s_config_that_cannot_be_read_is_not_kept(
        self, app: Flask, store: Store
    ) -> None:
        answer = post(app, "/webhook", action="X", project={"id": 9, "label_config": "<View>"})

        project = store.projects.get(9)
        assert answer.status == 201
        assert project is not None
        assert project.label_config == ""


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
class TestBodies:
    def test_one_in_chunks_is_read(self, app: Flask) -> None:
        body = json.dumps({"config": CONFIG}).encode()

        assert send(app, Hostile("/validate", body, has_length=False)).status == 200

    @pytest.mark.parametrize("has_length", [True, False])
    def test_one_that_is_too_large_is_refused(self, app: Flask, has_length: bool) -> None:
        app.config["MAX_CONTENT_LENGTH"] = 100_000
        large = Hostile("/validate", b"x" * 100_001, has_length=has_length)

        assert "larger than" in refused(send(app, large), 413)

    def test_one_that_takes_too_much_memory_once_parsed_is_refused(self, app: Flask) -> None:
        body = b"[" + b"[]," * (load.MEMORY_FOR_BODIES // 128) + b"[]]"

        assert "memory" in refused(send(app, Hostile("/validate", body)), 413)

    def test_more_predictions_than_an_answer_can_have_are_refused(self, app: Flask) -> None:
        second = (
            '<Choices name="c2" toName="image"><Choice value="a"/><Choice value="b"/></Choices>'
        )
        config = CONFIG.replace("</View>", f"{second}</View>")

        answer = post(app, "/predict", tasks=[0] * 50_001, label_config=config)

        assert "100000 predictions" in refused(answer, 413)

    def test_what_is_answered_gives_its_memory_back(self, app: Flask) -> None:
        # Commas in text are counted like those between values.
        body = b'{"config": "' + b"," * (load.MEMORY_FOR_BODIES // 128) + b'"}'

        errors = {refused(send(app, Hostile("/validate", body))) for _ in range(4)}

        assert len(errors) == 1
        assert "labeling config" in errors.pop()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@settings(thorough, max_examples=200)
@given(st.text(min_size=1))
def test_a_reason_phrase_is_one_printable_line(app: Flask, name: str) -> None:
    body = json.dumps({"project": 7, "extra_params": {name: 1}}).encode()

    answer = send(app, Hostile("/setup", body))

    assert answer.status == 400
    assert answer.reason.isascii()
    assert answer.reason.isprintable()


def test_what_strangers_send_is_one_line_of_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers = [*root.handlers]
    try:
        configure_logging("INFO")
        log = logging.getLogger("backend.test")
        log.info("action=%s", "a\r\n2026-01-01T00:00:00 INFO forged\x1b[31m\u2028b")
        log.info("action=%s", "x" * 1_000_000)
    finally:
        root.handlers = handlers

    forged, long = capsys.readouterr().err.splitlines()
    assert r"a\r\n2026-01-01T00:00:00 INFO forged\x1b[31m\u2028b" in forged
    assert len(long) < 5_000

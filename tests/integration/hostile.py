"""Requests that no Label Studio sends, and what every answer to one must be."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any
from urllib.parse import quote
from wsgiref.types import WSGIApplication

import jsonschema_rs
import orjson
from flask import Flask
from hypothesis import strategies as st
from werkzeug.test import run_wsgi_app

CONFIG = """
<View>
  <Image name="image" value="$image"/>
  <Choices name="colour" toName="image">
    <Choice value="red"/><Choice value="green"/><Choice value="blue"/>
  </Choices>
</View>
"""
RED = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAFklEQVR42mP8"
    "z8DAwMDAxMDAwMDAAAANHQEDaB7T3gAAAABJRU5ErkJggg=="
)


@dataclass(frozen=True)
class Hostile:
    """One request, as bytes; without a length it comes in chunks."""

    path: str
    body: bytes = b""
    method: str = "POST"
    query: str = ""
    environ: dict[str, str] = field(default_factory=dict)
    has_length: bool = True


@dataclass(frozen=True)
class Answer:
    status: int
    reason: str
    headers: dict[str, str]
    body: bytes


def send(app: WSGIApplication, request: Hostile) -> Answer:
    """Ask without a client in between, which would refuse to send most of this."""
    environ: dict[str, Any] = {
        "REQUEST_METHOD": request.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": request.path,
        "QUERY_STRING": request.query,
        "SERVER_NAME": "backend",
        "SERVER_PORT": "9090",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "192.0.2.1",
        "HTTP_HOST": "backend:9090",
        "CONTENT_TYPE": "application/json",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": BytesIO(request.body),
        "wsgi.errors": BytesIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        "wsgi.input_terminated": True,
    }
    if request.has_length:
        environ["CONTENT_LENGTH"] = str(len(request.body))
    else:
        environ["HTTP_TRANSFER_ENCODING"] = "chunked"
    chunks, status, headers = run_wsgi_app(app, environ | request.environ)
    code, _, reason = status.partition(" ")
    return Answer(int(code), reason, dict(headers), b"".join(chunks))


class Expected:
    """What the description says of answers, and what a right prediction is."""

    def __init__(self, app: Flask) -> None:
        self._app = app
        document = orjson.loads(send(app, Hostile("/openapi.json", method="GET")).body)
        self._validators: dict[tuple[str, str, int], Callable[[object], None]] = {}
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                for status, described in operation["responses"].items():
                    ((_, content),) = described["content"].items()
                    schema = {**content["schema"], "components": document["components"]}
                    validator = jsonschema_rs.Draft202012Validator(schema)
                    self._validators[path, method.upper(), int(status)] = validator.validate
        self._good = self._predict()
        assert "result" in orjson.loads(self._good)["results"][0]

    def check(self, request: Hostile, answer: Answer) -> None:
        """Fail for a server's error, and for an answer that is not described."""
        assert answer.status < 500, answer
        assert answer.reason.isascii(), answer.reason
        assert answer.reason.isprintable(), answer.reason
        validate = self._validators.get((request.path, request.method, answer.status))
        assert validate is not None, (request.path, request.method, answer.status)
        if answer.headers["Content-Type"] == "application/json":
            validate(orjson.loads(answer.body))
        else:
            validate(answer.body.decode())
        assert (answer.status == 429) == ("Retry-After" in answer.headers)

    def check_prediction(self) -> None:
        """Fail where a good request is no longer answered as before."""
        assert self._predict() == self._good

    def _predict(self) -> bytes:
        tasks = [{"id": 1, "data": {"image": RED}}]
        body = orjson.dumps({"tasks": tasks, "label_config": CONFIG})
        answer = send(self._app, Hostile("/predict", body))
        assert answer.status == 200, answer
        return answer.body


# JSON, as text: much of it no library would write.

_DIGITS = "9" * 5000
_ODD_JSON = [
    *("null", "true", "false", "[]", "{}", '""', '"7"', '"7.1718000000"', "7", "8", "-1", "0"),
    *("1e-400", "-0", "-0.0", "7.0", "2147483647", "2147483648", "9223372036854775808"),
    "18446744073709551616",
    *(f'"{_DIGITS}"', f'"7.{_DIGITS}"', '"٧"', '"７"', '" 7"', '"7\\n"', '"+7"', '"1e1"', '"-7"'),
    *('"\\ud83d\\ude00"', '"\\u0000"', '"a\\r\\nX-Injected: 1"', '"\u202e"', '"\ufeff"'),
    *('"' + "a" * 100_000 + '"', '"' + "é" * 50_000 + '"', '{"id": 7}', '{"id": {"id": 7}}'),
    *('{"a": 1, "a": 2}', '{"id": "7", "id": []}', '{"": ""}', '{"__proto__": {}}', "[[[]]]"),
    *("[" * n + "]" * n for n in (200, 1000)),
    *('{"a":' * n + "1" + "}" * n for n in (200, 1000)),
]
# One of these spoils a whole body.
_BROKEN_JSON = [
    *(
        "NaN",
        "Infinity",
        "-Infinity",
        "1e400",
        "-1e400",
        _DIGITS,
        "0x7",
        "'7'",
        "01",
        "undefined",
        "//",
        "/**/1",
        "",
    ),
    *('"\\ud800"', '"\\udfff x"', '"a\0b"', '"\x1b[31m"', '"\\x"', '"', "[", "{", "}", "[1,]"),
    *("[" * n + "]" * n for n in (1024, 1025, 20_000)),
    *('{"a":' * n + "1" + "}" * n for n in (1024, 1025, 20_000)),
]


def _mostly(
    usual: st.SearchStrategy[str], rare: st.SearchStrategy[str], *, times: int
) -> st.SearchStrategy[str]:
    # `one_of` gives a strategy that is named several times no more weight.
    return st.sampled_from([*[usual] * times, rare]).flatmap(lambda chosen: chosen)


_plain = _mostly(
    st.one_of(
        st.sampled_from(_ODD_JSON),
        st.integers().map(str),
        st.floats(allow_nan=False, allow_infinity=False).map(json.dumps),
        st.text(max_size=20).map(json.dumps),
    ),
    st.sampled_from(_BROKEN_JSON),
    times=40,
)
_keys = st.one_of(
    st.sampled_from(["id", "data", "image", "project", "label_config", "colour", "", "\0"]),
    st.text(max_size=5),
).map(json.dumps)


def _array(items: list[str]) -> str:
    return f"[{','.join(items)}]"


def _object(items: list[tuple[str, str]]) -> str:
    return "{" + ",".join(f"{key}:{value}" for key, value in items) + "}"


_values = st.recursive(
    _plain,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(_array),
        st.lists(st.tuples(_keys, inner), max_size=4).map(_object),
    ),
    max_leaves=8,
)


@st.composite
def _messages(draw: st.DrawFn, fields: dict[str, st.SearchStrategy[str]]) -> str:
    """Return an object with most of these fields, some of them hostile, doubled or unknown."""
    items = []
    for name, likely in fields.items():
        kind = draw(st.integers(0, 19))
        if kind < 17:
            items.append((json.dumps(name), draw(likely)))
        elif kind < 19:
            items.append((json.dumps(name), draw(_values)))
        if kind == 16:
            items.append((json.dumps(name), draw(_plain)))
    items += draw(st.lists(st.tuples(_keys, _plain), max_size=1))
    return _object(items)


# Labeling configs

_TAGS = ["View", "Image", "Choices", "Choice", "choices", "CHOICE", "Text", "Repeater", "é", "a:b"]
_NAMES = ["name", "toName", "value", "alias", "choice", "predicted_values", "perRegion", "perItem"]
_NAMES += ["allowNested", "valueList", "visibleWhen", "whenChoiceValue", "toname", "NAME", "xmlns"]
_TEXTS = ["image", "colour", "$image", "$image[0].url", "$a.b[0]", "$" * 50, "$image$image", ""]
_TEXTS += ["image,image", "a,,b", "multiple", "single", "true", " ", "{}", "{0}", "%s", "%(a)s"]
_TEXTS += ["&#10;", "&#13;&#10;X: 1", "&lt;b&gt;", "é", "𝒳", "\u202e", "'; DROP TABLE projects"]
_TEXTS += ["x" * 3000, "a photo of a " * 200, "_" * 300, "../../etc/passwd", "&#x10FFFF;", "{" * 99]

_attributes = st.dictionaries(st.sampled_from(_NAMES), st.sampled_from(_TEXTS), max_size=4)


def _element(tag: str, attributes: dict[str, str], children: list[str]) -> str:
    shown = "".join(f' {name}="{value}"' for name, value in attributes.items())
    return f"<{tag}{shown}>{''.join(children)}</{tag}>"


_elements = st.recursive(
    st.builds(_element, st.sampled_from(_TAGS), _attributes, st.just([])),
    lambda inner: st.builds(
        _element, st.sampled_from(_TAGS), _attributes, st.lists(inner, max_size=4)
    ),
    max_leaves=12,
)


def choices(values: list[str], name: str = "colour") -> str:
    """Return a config of one control; `values` are written as they are."""
    each = "".join(f'<Choice value="{value}"/>' for value in values)
    image = '<Image name="image" value="$image"/>'
    return f'<View>{image}<Choices name="{name}" toName="image">{each}</Choices></View>'


def _lol(depth: int) -> str:
    lines = [f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, depth)]
    return f'<!DOCTYPE l [<!ENTITY l0 "lol">{"".join(lines)}]>'


ODD_CONFIGS = [
    *("", " ", "\ufeff", "<", "<View", "<View/>", "<View></view>", "<a/><b/>", "no xml", "<?xml?>"),
    f"{_lol(9)}<View>&l8;</View>",
    f'{_lol(9)}<View><Image name="&l8;" value="&l8;"/></View>',
    f'<!DOCTYPE l [<!ENTITY a "{"a" * 50_000}">]><View>{"&a;" * 10_000}</View>',
    '<!DOCTYPE v [<!ENTITY x SYSTEM "file:///etc/passwd">]><View>&x;</View>',
    '<!DOCTYPE v [<!ENTITY % x SYSTEM "http://127.0.0.1:9/x.dtd">%x;]><View/>',
    '<!DOCTYPE v SYSTEM "http://127.0.0.1:9/x.dtd"><View/>',
    '<!DOCTYPE v PUBLIC "-//W3C//DTD XHTML 1.0//EN" "x"><View/>',
    '<View xmlns:xi="http://www.w3.org/2001/XInclude"><xi:include href="file:///etc/passwd"/></View>',
    '<?xml version="1.0" encoding="utf-16"?><View/>',
    '<?xml version="1.0" encoding="no-such"?><View/>',
    '<?xml version="1.1"?><View/>',
    '<?xml-stylesheet href="file:///etc/passwd"?><View/>',
    "<View>" * 20_000 + "</View>" * 20_000,
    "<View>" * 201 + "</View>" * 201,
    "<View>" * 199 + CONFIG + "</View>" * 199,
    "<Choices>" * 150 + "<Choice/>" * 5_000 + "</Choices>" * 150,
    choices([f"c{n}" for n in range(100_000)]),
    choices(["red", "red", " red", "red "]),
    choices(["$image", "red"]),
    choices(["a" * 30_000, "b" * 30_000]),
    choices(["a", "b"]).replace("$image", "$image" * 20_000),
    choices(["a", "b"]).replace("/>", f' predicted_values="{"a," * 20_000}"/>', 2),
    "<View>" + "".join(f'<Choices name="c{n}" toName="i"/>' for n in range(5_000)) + "</View>",
    "<View " + " ".join(f'a{n}="{n}"' for n in range(20_000)) + "/>",
    "<View>&#0;</View>",
    "<View>&#xD800;</View>",
    "<View>\0</View>",
    "<View>\ufffe</View>",
    "<View><![CDATA[<Choices/>]]></View>",
    "<View><!-- -- --></View>",
    "<a:View/>",
    "x" * (1 << 20),
]

configs = _mostly(
    st.one_of(
        st.just(CONFIG),
        _elements,
        st.lists(st.sampled_from(_TEXTS), min_size=1, max_size=5).map(choices),
        st.text(max_size=30),
    ),
    st.sampled_from(ODD_CONFIGS),
    times=10,
)


# Tasks

_SOURCES = [
    *(
        RED,
        RED,
        "data:",
        "data:,",
        "data:image/png;base64,AAAA",
        "data:image/png;base64,é",
        "http://[",
    ),
    *("http://a\0b/", "file:///etc/passwd", "s3://bucket/\0a.png", "gs://", "//", "/data/upload/1"),
    *(
        "/data/../../etc/passwd",
        "http://user:pw@[::1",
        "javascript:1",
        "\r\nHost: x",
        "x" * 100_000,
    ),
    *("https://", "http://a:99999999/", "http://\ud83d/", "azure-blob://é/\u202e", "http:///x"),
    *("http://" + "a" * 70_000, "ftp://a/b", "http://a b/", "HTTP://[v1.x]/", "data:" + "%" * 1000),
]

_images = st.one_of(st.sampled_from(_SOURCES).map(json.dumps), _values)
_tasks = _mostly(
    _messages({"id": _plain, "data": _messages({"image": _images})}), _values, times=10
)

_projects = st.sampled_from(['"7.1718000000"', '"7"', "7", '{"id": 7}', "8", '"1999999999"', "9"])
_config_texts = configs.map(json.dumps)
_extra_params = st.one_of(
    st.sampled_from(
        [
            "null",
            '""',
            '"{}"',
            "{}",
            '{"query_strategy": "entropy"}',
            '"{\\"retrain_delay\\": NaN}"',
            '{"retrain_delay": 1e400}',
            '{"prompts": {"red": ["a red thing"]}}',
            '{"prompts": {"red": []}}',
            '{"prompts": {"\\u0000": ["\\u0000"]}}',
            '"{\\"prompts\\": {\\"\\\\ud800\\": [\\"\\\\ud800\\"]}}"',
            '{"a\\r\\nX-Injected: 1\\u0000\\u001b": 1}',
            json.dumps("[" * 5000),
            json.dumps('{"prompts":' * 5000),
            json.dumps({"prompts": {"red": ["x" * 5000] * 1001}}),
        ]
    ),
    _values,
    _values.map(json.dumps),
)
_actions = st.sampled_from(
    [
        *("ANNOTATION_CREATED", "TASKS_CREATED", "TASKS_DELETED", "PROJECT_UPDATED"),
        *("PROJECT_DELETED", "START_TRAINING", "", "a\r\nINFO forged", "X" * 101),
    ]
).map(json.dumps)
_jobs = st.sampled_from(['"train-7"', '"train-train-7"', '"7"', '"train-"', f'"train-{_DIGITS}"'])
_of_project = _messages({"id": _projects, "project": _projects, "label_config": _config_texts})

BODIES: dict[str, st.SearchStrategy[str]] = {
    "/predict": _messages(
        {
            "tasks": st.lists(_tasks, max_size=3).map(_array),
            "project": _projects,
            "label_config": _config_texts,
            "params": _values,
        }
    ),
    "/setup": _messages(
        {
            "project": _projects,
            "schema": _config_texts,
            "extra_params": _extra_params,
            "hostname": _plain,
            "access_token": _plain,
        }
    ),
    "/webhook": _messages(
        {
            "action": _actions,
            "project": st.one_of(_projects, _of_project),
            "task": _of_project,
            "annotation": st.one_of(_of_project, st.lists(_of_project, max_size=2).map(_array)),
            "tasks": st.lists(_of_project, max_size=2).map(_array),
        }
    ),
    "/train": _messages({"project": _projects}),
    "/validate": _messages({"config": _config_texts}),
    "/job_status": _messages({"job": st.one_of(_jobs, _plain)}),
    "/delete": _messages({"project": _projects}),
    "/duplicate_model": _messages({"project_src": _projects, "project_dst": _projects}),
}


# Requests

_MULTIPART = b'--x\r\nContent-Disposition: form-data; name="tasks"\r\n\r\n[]\r\n--x--\r\n'


def _encoded(text: str) -> bytes:
    # What has been built as text can hold half a surrogate pair, which is a hostile body too.
    return text.encode(errors="surrogatepass")


_wrapped = st.sampled_from(
    [
        *[_encoded] * 60,
        lambda text: b"\xef\xbb\xbf" + _encoded(text),
        lambda text: text.encode("utf-16", errors="surrogatepass"),
        lambda text: _encoded(text) + b"\xff\xfe",
        lambda text: _encoded(text).replace(b"a", b"\xc3\x28", 1),
        lambda text: _encoded(text) + b"\0",
        lambda text: _encoded(text) + b"{}",
        lambda text: _encoded(text)[: len(text) // 2],
        lambda text: gzip.compress(_encoded(text), 1),
        lambda text: b"[" + _encoded(text) + b"]",
        lambda text: b"body=" + quote(text[:1000], errors="replace").encode(),
        lambda _: _MULTIPART,
        lambda _: b"",
    ]
)

_environs = st.sampled_from(
    [
        *[{}] * 100,
        {"CONTENT_TYPE": "multipart/form-data; boundary=x"},
        {"CONTENT_TYPE": "application/x-www-form-urlencoded"},
        {"CONTENT_TYPE": "text/xml; charset=utf-7"},
        {"CONTENT_TYPE": "application/json; charset=\xff"},
        {"CONTENT_TYPE": ""},
        {"HTTP_CONTENT_ENCODING": "gzip"},
        {"HTTP_AUTHORIZATION": "Basic !!!"},
        {"HTTP_AUTHORIZATION": "Basic \xff\xfe"},
        {"HTTP_AUTHORIZATION": "Basic " + "A" * 8000},
        {"HTTP_X_WEBHOOK_SECRET": "\xff" * 100},
        {"HTTP_X_FORWARDED_FOR": "1.2.3.4, \0, ::1"},
        {"HTTP_HOST": "a b\xff"},
        {"HTTP_HOST": ""},
        {"HTTP_EXPECT": "100-continue"},
        {"HTTP_X_HTTP_METHOD_OVERRIDE": "DELETE"},
        {"HTTP_RANGE": "bytes=0-0,1-" + "9" * 999},
        {"HTTP_COOKIE": "a=" + "b" * 8000},
        {"REMOTE_ADDR": ""},
        {"REMOTE_ADDR": "fe80::1%eth0"},
        {"CONTENT_LENGTH": "-1"},
        {"CONTENT_LENGTH": "x"},
        {"CONTENT_LENGTH": "9" * 30},
        {"CONTENT_LENGTH": "300000000"},
        {"CONTENT_LENGTH": "1000000"},
        {"CONTENT_LENGTH": "5"},
    ]
)

_queries = st.one_of(
    st.sampled_from(["project=7", "project=", "project=%00", "project=%ff", "project=7&project=8"]),
    st.sampled_from([f"project={_DIGITS}", "project=7.1718", "project=%ED%A0%80", "&" * 2000, "="]),
    st.text(max_size=20).map(lambda text: "project=" + quote(text, errors="replace")),
)


def requests_to(path: str) -> st.SearchStrategy[Hostile]:
    """Return hostile requests to one endpoint."""
    if path == "/report":
        return st.builds(Hostile, st.just(path), method=st.just("GET"), query=_queries)
    texts = _mostly(BODIES[path], _values, times=20)
    return st.builds(
        lambda text, wrap, environ, has_length: Hostile(
            path, wrap(text), environ=environ, has_length=has_length
        ),
        texts,
        _wrapped,
        _environs,
        st.sampled_from([True, True, True, False]),
    )


PATHS = (*BODIES, "/report")


# The page

_project_paths = st.sampled_from(
    [*["7"] * 20, "8", "0", "-1", "٧", "7.0", "7 ", "07", _DIGITS, "2147483647", "2147483648", "\0"]
)
_verbs = st.sampled_from([*["use", "train", "refresh"] * 5, "", "panels/jobs", "usé", "use/", "x"])
_versions = st.one_of(
    st.sampled_from(["latest", "1", "0", "-1", "", "clip-backend-1-00000000", _DIGITS, "\0", "١"]),
    st.text(max_size=40),
)
_form_names = st.sampled_from([*["version"] * 10, "", "version[]", "\0", "project_id"])
_forms = st.lists(st.tuples(_form_names, _versions), max_size=3).map(
    lambda fields: "&".join(
        f"{quote(name, errors='replace')}={quote(value, errors='replace')}"
        for name, value in fields
    )
)
_FORM = {"CONTENT_TYPE": "application/x-www-form-urlencoded"}
_SAME_ORIGIN = {"HTTP_SEC_FETCH_SITE": "same-origin"}
_browsers = st.sampled_from(
    [
        *[_SAME_ORIGIN] * 20,
        _SAME_ORIGIN | {"HTTP_HX_REQUEST": "true"},
        _SAME_ORIGIN | {"HTTP_ACCEPT": "text/html"},
        _SAME_ORIGIN | {"HTTP_ACCEPT": "\xff;q=x, */*;q=9"},
        {"HTTP_SEC_FETCH_SITE": "\xff"},
        {"HTTP_ORIGIN": "http://backend:9090"},
        {"HTTP_ORIGIN": "http://[::1"},
        {"HTTP_ORIGIN": "http://" + "a" * 8000},
        {"HTTP_ORIGIN": "\xff"},
        {},
    ]
)


def requests_to_the_page() -> st.SearchStrategy[Hostile]:
    """Return hostile requests to the forms of the page."""
    return st.builds(
        lambda project, verb, form, wrap, browser, environ, has_length: Hostile(
            # As a server hands a path on: its bytes, each as a character.
            f"/projects/{project}/{verb}".encode().decode("latin-1"),
            wrap(form),
            environ=_FORM | browser | environ,
            has_length=has_length,
        ),
        _project_paths,
        _verbs,
        _forms,
        _wrapped,
        _browsers,
        _environs,
        st.sampled_from([*[True] * 9, False]),
    )

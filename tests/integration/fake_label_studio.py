"""Label Studio's API as far as jobs use it, kept in memory: one project, a real HTTP server.

It behaves as release 1.23 does where that matters: an import that names an unknown task fails as a
whole, a page past the last one is not found, and a task changes when an annotation or prediction of
it is added or removed, but not by an import of predictions or by the removal of several.
"""

from __future__ import annotations

import json
import sys
import threading
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any
from urllib.parse import parse_qs, urlsplit

PROJECT = 7
CONFIG = """
<View>
  <Image name="image" value="$image"/>
  <Choices name="colour" toName="image">
    <Choice value="red"/><Choice value="green"/><Choice value="blue"/>
  </Choices>
</View>
"""


Odd = tuple[int, dict[str, str], bytes]


def _given(task: dict[str, Any]) -> list[dict[str, Any]]:
    return [annotation for annotation in task["annotations"] if not annotation["was_cancelled"]]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that is killed hangs up.
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class FakeLabelStudio:
    """What a project holds, and the server that shows it.

    `before` is called ahead of each request with its method and path: what happens meanwhile.
    `instead` may return a status, headers and a body that are answered in its place; of a body
    that is shorter than its Content-Length the rest never comes.
    """

    token = "a-legacy-token"

    def __init__(self) -> None:
        self.project: dict[str, Any] | None = {
            "id": PROJECT,
            "title": "Colours",
            "label_config": CONFIG,
            "model_version": "CLIP",
            "sampling": "Uncertainty sampling",
            "show_collab_predictions": True,
        }
        self.tasks: dict[int, dict[str, Any]] = {}
        self.predictions: dict[int, dict[str, Any]] = {}
        self.ml_backends: list[dict[str, Any]] = [{"id": 1, "url": "http://backend:9090"}]
        self.views: dict[int, dict[str, Any]] = {}
        self.users: dict[int, str] = {1: "ada@example.com", 2: "bob@example.com"}
        self.imports: list[list[dict[str, Any]]] = []
        self.requests: list[tuple[str, str]] = []
        self.last_annotated_at = ""
        self.before: Callable[[str, str], None] = lambda method, path: None
        self.instead: Callable[[str, str], Odd | None] = lambda method, path: None
        self._ids = count(1)
        self._clock = count(1)
        self._lock = threading.RLock()
        self._http = _Server(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def close(self) -> None:
        """Stop the server."""
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def add_tasks(self, *images: str, **fields: str) -> list[int]:
        """Import tasks as a user does; return their ids."""
        ids = []
        for image in images:
            task_id = next(self._ids)
            self.tasks[task_id] = {"data": {"image": image, **fields}, "annotations": []}
            self._touch(task_id)
            self.tasks[task_id]["created_at"] = self.tasks[task_id]["updated_at"]
            ids.append(task_id)
        return ids

    def annotate(self, task_id: int, *choices: str, control: str = "colour") -> None:
        """Submit an annotation as a user does."""
        chosen = {
            "from_name": control,
            "to_name": "image",
            "type": "choices",
            "value": {"choices": list(choices)},
        }
        self.tasks[task_id]["annotations"].append(
            {"id": next(self._ids), "was_cancelled": False, "result": [chosen]}
        )
        self._touch(task_id)
        self.last_annotated_at = self.tasks[task_id]["updated_at"]

    def unannotate(self, task_id: int) -> None:
        """Delete a task's annotations as a user does."""
        self.tasks[task_id]["annotations"].clear()
        self._touch(task_id)

    def skip(self, task_id: int) -> None:
        """Skip a task as a user does."""
        self.tasks[task_id]["annotations"].append(
            {"id": next(self._ids), "was_cancelled": True, "result": []}
        )
        self._touch(task_id)

    def delete_task(self, task_id: int) -> None:
        """Delete a task and, as Label Studio does, its predictions."""
        del self.tasks[task_id]
        for key, prediction in list(self.predictions.items()):
            if prediction["task"] == task_id:
                del self.predictions[key]

    def predict(self, task_id: int, model_version: str) -> None:
        """Store a prediction as Label Studio does with what `/predict` answers.

        Of a version that has predicted the task before it says the same.
        """
        said = [
            each["result"]
            for each in self.predictions.values()
            if (each["task"], each["model_version"]) == (task_id, model_version)
        ]
        self.predictions[next(self._ids)] = {
            "task": task_id,
            "model_version": model_version,
            "score": 0.5,
            "result": said[0] if said else [],
        }
        self._touch(task_id)

    def change(self, task_id: int, **data: str) -> None:
        """Change a task's data as a script of a user does."""
        self.tasks[task_id]["data"] = data
        self._touch(task_id)

    def predicted(self, model_version: str | None = None) -> Counter[int]:
        """Count the predictions by task, of one version or of all."""
        return Counter(
            prediction["task"]
            for prediction in self.predictions.values()
            if model_version in (None, prediction["model_version"])
        )

    def snapshot(self) -> object:
        """Return a copy of all that it holds, as a backup does."""
        with self._lock:
            return deepcopy((self.project, self.tasks, self.predictions, self.ml_backends))

    def restore(self, snapshot: object) -> None:
        """Hold again what it held; ids that were given since are given again."""
        with self._lock:
            held: Any = deepcopy(snapshot)
            self.project, self.tasks, self.predictions, self.ml_backends = held
            used = [*self.tasks, *self.predictions]
            used += [given["id"] for task in self.tasks.values() for given in task["annotations"]]
            self._ids = count(max(used, default=0) + 1)

    def _touch(self, task_id: int) -> None:
        self.tasks[task_id]["updated_at"] = f"2026-01-01T00:00:00.{next(self._clock):06d}Z"

    def _answer(
        self, method: str, path: str, query: dict[str, str], body: Any
    ) -> tuple[int, object]:
        parts = path.strip("/").split("/")[1:]
        if parts[0] == "projects" and (self.project is None or parts[1] != str(PROJECT)):
            return 404, {"detail": "No Project matches the given query."}
        match method, parts:
            case "GET", ["projects", _]:
                annotations = sum(len(_given(task)) for task in self.tasks.values())
                counts = {"task_number": len(self.tasks), "total_annotations_number": annotations}
                return 200, {**(self.project or {}), **counts}
            case "PATCH", ["projects", _]:
                self.project = {**(self.project or {}), **body}
                return 200, self.project
            case "GET", ["tasks"]:
                return self._list(query)
            case "POST", ["projects", _, "import", "predictions"]:
                return self._import(body)
            case "GET", ["projects", _, "model-versions"]:
                return 200, Counter(each["model_version"] for each in self.predictions.values())
            case "GET", ["predictions"]:
                return 200, [{"id": key, **each} for key, each in self.predictions.items()]
            case "POST", ["predictions"]:
                key = next(self._ids)
                self.predictions[key] = dict(body)
                self._touch(body["task"])
                return 201, {"id": key, **body}
            case "POST", ["dm", "actions"] if query["id"] == "delete_tasks_predictions":
                included = body["selectedItems"]["included"]
                for key, prediction in list(self.predictions.items()):
                    if prediction["task"] in included:
                        del self.predictions[key]
                return 200, {"processed_items": len(included)}
            case "DELETE", ["predictions", key]:
                found = self.predictions.pop(int(key), None)
                if found is None:
                    return 404, {"detail": "Not found."}
                self._touch(found["task"])
                return 204, None
            case "GET", ["version"]:
                return 200, {"release": "1.23.0"}
            case "GET", ["current-user", "whoami"]:
                return 200, {"email": self.users[1]}
            case "GET", ["webhooks"]:
                return 200, []
            case "GET", ["ml"]:
                return 200, self.ml_backends
            case "PATCH", ["ml", key]:
                [found] = [each for each in self.ml_backends if each["id"] == int(key)]
                found |= body
                return 200, found
            case "GET", ["users"]:
                return 200, [{"id": key, "email": email} for key, email in self.users.items()]
            case "GET", ["dm", "views"]:
                return 200, [{"id": key, "data": data} for key, data in self.views.items()]
            case "POST", ["dm", "views"]:
                key = next(self._ids)
                self.views[key] = body["data"]
                return 201, {"id": key, "data": body["data"]}
            case "PATCH", ["dm", "views", key]:
                self.views[int(key)] = body["data"]
                return 200, {"id": int(key), "data": body["data"]}
            case "DELETE", ["dm", "views", key]:
                del self.views[int(key)]
                return 204, None
        return 404, {"detail": f"{method} {path} is not faked"}

    def _list(self, query: dict[str, str]) -> tuple[int, object]:
        wanted = json.loads(query.get("query", "{}"))
        tasks = sorted(self.tasks.items())
        if "selectedItems" in wanted:
            included = wanted["selectedItems"]["included"]
            tasks = [(key, task) for key, task in tasks if key in included]
        if "filters" in wanted:
            tasks = [(key, task) for key, task in tasks if task["annotations"]]
        if "ordering" in wanted:
            tasks.sort(key=lambda item: item[1]["updated_at"], reverse=True)
        page, size = int(query.get("page", "1")), int(query["page_size"])
        shown = tasks[(page - 1) * size : page * size]
        if page > 1 and not shown:
            return 404, {"detail": "Invalid page."}
        items = [
            {
                "id": key,
                "data": task["data"],
                "is_labeled": bool(_given(task)),
                "total_annotations": len(_given(task)),
                "created_at": task["created_at"],
                "updated_at": task["updated_at"],
                "annotations": task["annotations"],
                "predictions": [
                    {"id": prediction_id, **prediction}
                    for prediction_id, prediction in self.predictions.items()
                    if prediction["task"] == key
                ],
            }
            for key, task in shown
        ]
        return 200, {"tasks": items, "total": len(tasks)}

    def _import(self, body: list[dict[str, Any]]) -> tuple[int, object]:
        unknown = {item["task"] for item in body} - self.tasks.keys()
        if unknown:
            return 400, {"validation_errors": f"unknown tasks {sorted(unknown)}"}
        self.imports.append(body)
        self.predictions |= {next(self._ids): dict(item) for item in body}
        return 201, {"created": len(body)}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Headers and body are written apart, and the second would wait for the first.
            disable_nagle_algorithm = True

            def answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                address = urlsplit(self.path)
                query = {key: values[0] for key, values in parse_qs(address.query).items()}
                headers: dict[str, str] = {}
                # Before the lock: what hangs must not keep the others waiting.
                odd = fake.instead(self.command, address.path)
                with fake._lock:
                    fake.requests.append((self.command, address.path))
                    if odd is not None:
                        status, headers, data = odd
                    else:
                        status, answer = self.answer_to(address.path, query, body)
                        data = b"" if answer is None else json.dumps(answer).encode()
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(data))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)
                self.close_connection = "Content-Length" in headers

            def answer_to(self, path: str, query: dict[str, str], body: Any) -> tuple[int, object]:
                if self.headers.get("Authorization") != f"Token {fake.token}":
                    return 401, {"detail": "Invalid token."}
                fake.before(self.command, path)
                return fake._answer(self.command, path, query, body)

            do_GET = do_POST = do_PATCH = do_DELETE = answer  # noqa: N815 — http.server's names

            def log_message(self, *_: Any) -> None:
                pass

        return Handler

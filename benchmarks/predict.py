"""How does /predict compare with the bare model, and with a backend as tutorials write one?

    python benchmarks/predict.py [--kind JPEG|PNG|WEBP] [--size 1024x768] [--rounds 5]
    python benchmarks/predict.py --model ViT-L-14 --tasks 256      (`make bench-gpu`)

Cold: pictures that were never seen, fetched over HTTP, decoded, encoded, stored. The bare model
gets tensors in memory, in the best of the precisions of this CPU or GPU. Warm: pictures that are in
the store. All take turns on the same cores.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import httpx
import numpy as np
import orjson
import parts
import torch

from backend.clip.encoder import BATCH

GOALS = {32: 0.75, 100: 0.9, 256: 0.9}
WARM = 1000
BUSY = 160
NUMBERS = count()
PRECISIONS = (torch.float32, torch.bfloat16)


def main() -> None:
    options = arguments()
    width, height = map(int, options.size.split("x"))
    with (
        parts.temporary_folder() as folder,
        parts.picture_server(options.kind, (width, height)) as pictures,
    ):
        weights = str(parts.random_weights(folder, options.model))
        settings = {
            "CLIP_MODEL": options.model,
            "CLIP_PRETRAINED": weights,
            "PRECISION": options.precision,
        }
        with (
            parts.backend(folder, **settings) as ours,
            example(options.model, weights) as theirs,
        ):
            bare = bare_model(options, weights)
            cold(ours, theirs, pictures, bare, options)
            health(ours, pictures)
            warm(ours, theirs, pictures, options)


def cold(
    ours: httpx.Client,
    theirs: httpx.Client,
    pictures: str,
    bare: Callable[[int], None],
    options: argparse.Namespace,
) -> None:
    predict(ours, fresh(pictures, 32))
    predict(theirs, fresh(pictures, 2))
    columns = ("bare/s", "ours/s", "example/s", "to bare", "to example")
    print(f"{'tasks':>6}" + "".join(f"{column:>12}" for column in columns))
    lines = []
    for size in options.tasks:
        taken = parts.in_turns(
            {
                "bare": lambda size=size: bare(size),
                "ours": lambda size=size: predict(ours, fresh(pictures, size)),
                "example": lambda size=size: predict(theirs, fresh(pictures, size)),
            },
            options.rounds,
        )
        of_bare, of_example = taken["bare"] / taken["ours"], taken["example"] / taken["ours"]
        print(
            f"{size:6}{size / taken['bare']:12.1f}{size / taken['ours']:12.1f}"
            f"{size / taken['example']:12.1f}{of_bare:12.2f}{of_example:12.1f}",
            flush=True,
        )
        if size in GOALS:
            lines.append(
                f"cold, {size} tasks, to the bare model: {of_bare:.2f} x; "
                f"{parts.verdict(of_bare, GOALS[size], at_least=True)}"
            )
    lines.append(
        f"cold, {size} tasks, to the example: {of_example:.1f} x; "
        f"{parts.verdict(of_example, 8, at_least=True)}"
    )
    print("\n".join(lines))


def health(ours: httpx.Client, pictures: str) -> None:
    """Look at /health, which Label Studio gives one second, while cold tasks are predicted."""
    answered: list[float] = []
    with ThreadPoolExecutor(1) as thread:
        busy = thread.submit(predict, ours, fresh(pictures, BUSY))
        while not busy.done():
            answered.append(parts.seconds(lambda: ours.get("/health").raise_for_status()))
            time.sleep(0.01)
        busy.result()
    p99 = float(np.percentile(answered, 99)) * 1000
    print(
        f"/health while {BUSY} cold tasks are predicted: p50 {np.median(answered) * 1000:.0f} ms, "
        f"p99 {p99:.0f} ms of {len(answered)}; {parts.verdict(p99, 80, at_least=False)}"
    )


def warm(
    ours: httpx.Client, theirs: httpx.Client, pictures: str, options: argparse.Namespace
) -> None:
    seen = fresh(pictures, WARM)
    for start in range(0, WARM, 100):
        predict(ours, seen[start : start + 100])
    some = seen[:100]
    taken = parts.in_turns(
        {"ours": lambda: predict(ours, seen), "example": lambda: predict(theirs, some)},
        options.rounds,
    )
    rate = WARM / taken["ours"]
    print(f"warm, 1,000 tasks: {rate:.0f} tasks/s; {parts.verdict(rate, 8000, at_least=True)}")
    times = rate * taken["example"] / len(some)
    print(f"warm, to the example: {times:.0f} x; {parts.verdict(times, 1000, at_least=True)}")


def fresh(pictures: str, count: int) -> list[dict[str, object]]:
    """Return tasks whose pictures were never asked for."""
    ids = [next(NUMBERS) for _ in range(count)]
    return [{"id": i + 1, "data": {"image": f"{pictures}/{i}"}} for i in ids]


def predict(client: httpx.Client, tasks: list[dict[str, object]]) -> None:
    body = {"tasks": tasks, "project": "1.0", "label_config": parts.label_config()}
    response = client.post(
        "/predict", content=orjson.dumps(body), headers={"Content-Type": "application/json"}
    )
    response.raise_for_status()
    results = orjson.loads(response.content)["results"]
    if len(results) != len(tasks) or any("result" not in item for item in results):
        raise SystemExit(f"not all tasks were predicted: {results[0]}")


def bare_model(options: argparse.Namespace, weights: str) -> Callable[[int], None]:
    """Return what encodes so many pictures in memory, in the precision that is fastest here."""
    import open_clip

    logging.getLogger().setLevel(logging.ERROR)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch = BATCH[device.type]

    def encoding(precision: torch.dtype) -> Callable[[int], None]:
        model = open_clip.create_model(options.model, pretrained=weights).eval()
        model = model.to(device, precision)
        side = model.visual.image_size[0]
        pictures = torch.randn(max(options.tasks), 3, side, side).to(device, precision)

        def encode(size: int) -> None:
            with torch.inference_mode():
                for start in range(0, size, batch):
                    model.encode_image(pictures[start : min(start + batch, size)]).float().cpu()

        return encode

    precisions = PRECISIONS if options.precision == "auto" else PRECISIONS[:1]
    candidates = {precision: encoding(precision) for precision in precisions}
    size = max(options.tasks)
    for encode in candidates.values():
        encode(size)
    taken = parts.in_turns(
        {str(precision): lambda e=encode: e(size) for precision, encode in candidates.items()}, 3
    )
    best = min(candidates, key=lambda precision: taken[str(precision)])
    rates = ", ".join(f"{name} {size / each:.1f}/s" for name, each in taken.items())
    print(f"{options.model} on {device}, {torch.get_num_threads()} threads, bare: {rates}")
    return candidates[best]


@contextmanager
def example(name: str, weights: str) -> Iterator[httpx.Client]:
    """Yield a client of the example backend."""
    port = parts.free_port()
    script = Path(__file__).with_name("example_backend.py")
    with (
        parts.running([sys.executable, str(script), str(port), name, weights]),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600) as client,
    ):
        parts.wait_until(lambda: client.get("/health").is_success)
        yield client


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kind", default="JPEG", choices=("JPEG", "PNG", "WEBP"))
    parser.add_argument("--size", default="1024x768", metavar="WxH")
    parser.add_argument("--model", default=parts.MODEL)
    parser.add_argument(
        "--precision", default="auto", choices=("auto", "float32"), help="of both, as on older CPUs"
    )
    parser.add_argument("--tasks", type=int, nargs="+", default=[1, 32, 100])
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()

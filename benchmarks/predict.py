"""How does /predict compare with the bare model, and with a backend as tutorials write one?

    python benchmarks/predict.py [--kind JPEG|PNG|WEBP] [--size 1024x768] [--rounds 5]

Cold: pictures that were never seen, fetched over HTTP, decoded, encoded, stored. The bare model
gets tensors in memory, in the best of the precisions of this CPU or GPU. Warm: pictures that are in
the store. All take turns on the same cores.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import httpx
import orjson
import parts
import torch

COLD = (1, 32, 100)
GOALS = {32: 0.75, 100: 0.9}
WARM = 1000
PRECISIONS = (torch.float32, torch.bfloat16)


def main() -> None:
    options = arguments()
    width, height = map(int, options.size.split("x"))
    with (
        parts.temporary_folder() as folder,
        parts.picture_server(options.kind, (width, height)) as pictures,
    ):
        weights = str(parts.random_weights(folder))
        settings = {"CLIP_MODEL": parts.MODEL, "CLIP_PRETRAINED": weights}
        with parts.backend(folder, **settings) as ours, example(weights) as theirs:
            measure(ours, theirs, pictures, bare_model(weights), options.rounds)


def measure(
    ours: httpx.Client,
    theirs: httpx.Client,
    pictures: str,
    bare: Callable[[int], None],
    rounds: int,
) -> None:
    numbers = count()

    def fresh(size: int) -> list[dict[str, object]]:
        ids = [next(numbers) for _ in range(size)]
        return [{"id": i + 1, "data": {"image": f"{pictures}/{i}"}} for i in ids]

    predict(ours, fresh(32)), predict(theirs, fresh(2))
    columns = ("bare/s", "ours/s", "example/s", "to bare", "to example")
    print(f"{'tasks':>6}" + "".join(f"{column:>11}" for column in columns))
    for size in COLD:
        taken = parts.in_turns(
            {
                "bare": lambda size=size: bare(size),
                "ours": lambda size=size: predict(ours, fresh(size)),
                "example": lambda size=size: predict(theirs, fresh(size)),
            },
            rounds,
        )
        of_bare, of_example = taken["bare"] / taken["ours"], taken["example"] / taken["ours"]
        print(
            f"{size:6}{size / taken['bare']:11.1f}{size / taken['ours']:11.1f}"
            f"{size / taken['example']:11.1f}{of_bare:11.2f}{of_example:11.1f}"
        )
        if goal := GOALS.get(size):
            print(
                f"cold, {size} tasks, to the bare model: {of_bare:.2f} x; "
                f"{parts.verdict(of_bare, goal, at_least=True)}"
            )
    print(
        f"cold, {size} tasks, to the example: {of_example:.1f} x; "
        f"{parts.verdict(of_example, 8, at_least=True)}"
    )

    seen = fresh(WARM)
    for start in range(0, WARM, 100):
        predict(ours, seen[start : start + 100])
    some = seen[:100]
    taken = parts.in_turns(
        {
            "thousand": lambda: predict(ours, seen),
            "hundred": lambda: predict(ours, some),
            "example": lambda: predict(theirs, some),
        },
        rounds,
    )
    rate = WARM / taken["thousand"]
    print(f"warm, 1,000 tasks: {rate:.0f} tasks/s; {parts.verdict(rate, 8000, at_least=True)}")
    rates = rate * taken["example"] / len(some)
    print(f"warm, to the example: {rates:.0f} x; {parts.verdict(rates, 1000, at_least=True)}")


def predict(client: httpx.Client, tasks: list[dict[str, object]]) -> None:
    body = {"tasks": tasks, "project": "1.0", "label_config": parts.label_config()}
    response = client.post(
        "/predict", content=orjson.dumps(body), headers={"Content-Type": "application/json"}
    )
    response.raise_for_status()
    results = orjson.loads(response.content)["results"]
    if len(results) != len(tasks) or any("result" not in item for item in results):
        raise SystemExit(f"not all tasks were predicted: {results[0]}")


def bare_model(weights: str) -> Callable[[int], None]:
    """Return what encodes so many pictures in memory, in the precision that is fastest here."""
    import open_clip

    logging.getLogger().setLevel(logging.ERROR)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def encoding(precision: torch.dtype) -> Callable[[int], None]:
        model = open_clip.create_model(parts.MODEL, pretrained=weights).eval()
        model = model.to(device, precision)
        pictures = torch.randn(100, 3, 224, 224).to(device, precision)

        def encode(size: int) -> None:
            with torch.inference_mode():
                # Larger batches are no faster on a CPU.
                for start in range(0, size, 32):
                    model.encode_image(pictures[start : min(start + 32, size)]).float().cpu()

        return encode

    candidates = {precision: encoding(precision) for precision in PRECISIONS}
    for encode in candidates.values():
        encode(32)
    taken = parts.in_turns(
        {str(precision): lambda e=encode: e(32) for precision, encode in candidates.items()}, 3
    )
    best = min(candidates, key=lambda precision: taken[str(precision)])
    print(f"{device}, {torch.get_num_threads()} threads, bare model in {best}: {taken}")
    return candidates[best]


@contextmanager
def example(weights: str) -> Iterator[httpx.Client]:
    """Yield a client of the example backend."""
    port = parts.free_port()
    script = Path(__file__).with_name("example_backend.py")
    with (
        parts.running([sys.executable, str(script), str(port), weights]),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600) as client,
    ):
        parts.wait_until(lambda: client.get("/health").is_success)
        yield client


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kind", default="JPEG", choices=("JPEG", "PNG", "WEBP"))
    parser.add_argument("--size", default="1024x768", metavar="WxH")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()

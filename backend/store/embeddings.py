"""Embeddings by encoder and picture: each picture is encoded once, whoever asks.

A picture is known by its source (where it is fetched from) and by its content (a digest of its
bytes), so that the same picture under two addresses is encoded once.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from backend.store.requests import SKEW
from backend.store.schema import Database, embeddings, images

# Stays below SQLite's and PostgreSQL's limits on parameters of one statement.
CHUNK = 1000

# Seconds that nobody tries a picture again. A time further ahead was written before the clock went
# back, and is not waited for.
LONGEST_PAUSE = 3600.0

# float16 keeps a unit vector's cosines to within 1e-3 at a quarter of float64's size.
STORED = np.dtype("<f2")

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class Failure:
    """A picture that could not be had; until `retry_at` (Unix time) nobody tries again.

    That is within `LONGEST_PAUSE`.
    """

    message: str
    retry_at: float


class Embeddings:
    """The tables of pictures and their embeddings."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, encoder: str, sources: Iterable[str]) -> dict[str, Vector | Failure]:
        """Return what is known of `sources`: unit vectors [D] float32, or recent failures."""
        by_digest = {digest(source): source for source in sources}
        found: dict[str, Vector | Failure] = {}
        now = time.time()
        query = sa.select(
            images.c.source, images.c.error, images.c.retry_at, embeddings.c.vector
        ).select_from(
            images.outerjoin(
                embeddings,
                sa.and_(embeddings.c.content == images.c.content, embeddings.c.encoder == encoder),
            )
        )
        stored: list[str] = []
        vectors: list[bytes] = []
        with self._database.read() as connection:
            for digests in _chunks(list(by_digest)):
                rows = connection.execute(
                    query.where(self._database.among(images.c.source, digests))
                ).all()
                for source, error, retry_at, vector in rows:
                    if vector is not None:
                        stored.append(by_digest[source])
                        vectors.append(vector)
                    elif error is not None and now < retry_at <= now + LONGEST_PAUSE + SKEW:
                        found[by_digest[source]] = Failure(error, retry_at)
        if stored:
            # One encoder's are of one size.
            together = np.frombuffer(b"".join(vectors), STORED).astype(np.float32)
            found.update(zip(stored, together.reshape(len(stored), -1), strict=True))
        return found

    def find_by_content(self, encoder: str, contents: Iterable[str]) -> set[str]:
        """Return those digests of picture bytes that have an embedding."""
        known: set[str] = set()
        with self._database.read() as connection:
            for chunk in _chunks(list(contents)):
                known.update(
                    connection.scalars(
                        sa.select(embeddings.c.content).where(
                            embeddings.c.encoder == encoder,
                            self._database.among(embeddings.c.content, chunk),
                        )
                    )
                )
        return known

    def save(
        self,
        encoder: str,
        contents: Mapping[str, str],
        vectors: Mapping[str, Vector],
        failures: Mapping[str, Failure],
    ) -> None:
        """Keep the outcome of one batch.

        `contents` maps sources to digests of their bytes, `vectors` digests to unit vectors [D],
        `failures` sources to why they could not be had.
        """
        now = time.time()
        image_rows: list[dict[str, object]] = [
            {
                "source": digest(source),
                "content": content,
                "error": None,
                "retry_at": None,
                "used_at": now,
            }
            for source, content in contents.items()
        ]
        image_rows += [
            {
                "source": digest(source),
                "content": None,
                "error": failure.message,
                "retry_at": failure.retry_at,
                "used_at": now,
            }
            for source, failure in failures.items()
        ]
        vector_rows = [
            {"encoder": encoder, "content": content, "vector": vector.astype(STORED).tobytes()}
            for content, vector in vectors.items()
        ]
        insert_image = self._database.insert(images)
        with self._database.write() as connection:
            if vector_rows:
                connection.execute(
                    self._database.insert(embeddings).on_conflict_do_nothing(), vector_rows
                )
            if image_rows:
                connection.execute(
                    insert_image.on_conflict_do_update(
                        index_elements=["source"],
                        set_={
                            "content": insert_image.excluded.content,
                            "error": insert_image.excluded.error,
                            "retry_at": insert_image.excluded.retry_at,
                            "used_at": insert_image.excluded.used_at,
                        },
                    ),
                    # Two workers that save the same pictures lock the rows in one order.
                    sorted(image_rows, key=lambda row: str(row["source"])),
                )

    def count(self, encoder: str | None = None) -> int:
        """Return the number of embeddings, of one encoder or of all."""
        query = sa.select(sa.func.count()).select_from(embeddings)
        if encoder is not None:
            query = query.where(embeddings.c.encoder == encoder)
        with self._database.read() as connection:
            return connection.execute(query).scalar_one()


def digest(source: str) -> str:
    """Return what a picture's source is stored as."""
    return sha256(source.encode(errors="surrogatepass")).hexdigest()


def _chunks(items: Sequence[str]) -> Iterable[list[str]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk

"""A CLIP that is loaded while its process already answers."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from backend.clip.encoder import Encoder
from backend.errors import EncoderError, SettingsError

log = logging.getLogger(__name__)


class BackgroundEncoder:
    """An encoder that is loaded in a thread while its process already answers."""

    def __init__(self, load: Callable[[], Encoder]) -> None:
        self._load = load
        self._ready = threading.Event()
        self._encoder: Encoder | None = None
        self._error: EncoderError | None = None

    def start(self) -> None:
        """Begin to load."""
        threading.Thread(target=self._run, name="load-encoder", daemon=True).start()

    @property
    def loaded(self) -> bool:
        """Whether the encoder can be used at once."""
        return self._encoder is not None

    def wait(self, timeout: float) -> Encoder:
        """Return the encoder; raises EncoderError where it cannot be had within `timeout` s."""
        if not self._ready.wait(timeout):
            raise EncoderError("CLIP is still being loaded: try again in a moment")
        if self._encoder is None:
            raise EncoderError(str(self._error))
        return self._encoder

    def _run(self) -> None:
        try:
            self._encoder = self._load()
            log.info("encoder loaded identity=%s", self._encoder.identity)
        except (EncoderError, SettingsError) as error:
            log.error("encoder not loaded: %s", error)
            self._error = EncoderError(str(error))
        except Exception:
            self._error = EncoderError("CLIP cannot be loaded: see the log of the backend")
            raise
        finally:
            self._ready.set()

"""A Label Studio backend that learns while people annotate images."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backend.classifier import CLIPImageClassifier

__all__ = ["CLIPImageClassifier", "__version__"]

__version__ = "0.1.0"

# Before torch and scikit-learn are loaded, which read it then. By OpenMP's default, threads wait
# for each other in busy loops: a quarter faster alone, but beside a Label Studio or another worker
# on the same cores trainings take three to five times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def __getattr__(name: str) -> object:
    # The class needs scikit-learn and torch, which most commands and every setting do without.
    if name == "CLIPImageClassifier":
        from backend.classifier import CLIPImageClassifier

        return CLIPImageClassifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

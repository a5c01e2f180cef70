"""CLIP and a head on it as a scikit-learn classifier of pictures."""

from backend.classifier.estimator import CLIPImageClassifier

__all__ = ["CLIPImageClassifier"]

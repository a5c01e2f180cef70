"""A backend as tutorials write one: `python benchmarks/example_backend.py PORT MODEL WEIGHTS`.

It loads CLIP in float32 and, at each request, downloads every picture to a file, opens it and
encodes it, one after the other. It keeps nothing.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx
import open_clip
import torch
from flask import Flask, request
from parts import LABELS
from PIL import Image


class Model:
    """CLIP and the texts of the choices."""

    def __init__(self, name: str, weights: str) -> None:
        self.clip, _, self.preprocess = open_clip.create_model_and_transforms(
            name, pretrained=weights
        )
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.clip.to(self.device).eval()
        tokenize = open_clip.get_tokenizer(name)
        with torch.no_grad():
            prompts = tokenize([f"a photo of a class {number}" for number in range(LABELS)])
            texts = self.clip.encode_text(prompts.to(self.device))
        self.texts = texts / texts.norm(dim=-1, keepdim=True)

    def predict(self, tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
        predictions = []
        for task in tasks:
            image = self.preprocess(Image.open(local_path(task["data"]["image"]))).unsqueeze(0)
            with torch.no_grad():
                vector = self.clip.encode_image(image.to(self.device))
            vector = vector / vector.norm(dim=-1, keepdim=True)
            probabilities = (100 * vector @ self.texts.T).softmax(dim=-1)[0]
            index = int(probabilities.argmax())
            result = {
                "from_name": "label",
                "to_name": "image",
                "type": "choices",
                "value": {"choices": [f"class {index}"]},
            }
            predictions.append({"result": [result], "score": float(probabilities[index])})
        return predictions


def local_path(url: str) -> Path:
    """Download a picture, as the SDK's `get_local_path` does for addresses on the web."""
    path = Path(tempfile.gettempdir()) / f"picture-{abs(hash(url))}"
    response = httpx.get(url)
    response.raise_for_status()
    path.write_bytes(response.content)
    return path


def main() -> None:
    port, name, weights = sys.argv[1:]
    logging.disable(logging.INFO)
    model = Model(name, weights)
    app = Flask(__name__)

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "UP"}

    @app.post("/predict")
    def predict() -> dict[str, Any]:
        return {"results": model.predict(request.get_json()["tasks"])}

    app.run("127.0.0.1", int(port))


if __name__ == "__main__":
    main()

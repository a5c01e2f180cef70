"""Pictures to what a CLIP sees of them."""

from __future__ import annotations

import math
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import Compose, Normalize, Resize
from torchvision.transforms.v2 import PILToTensor
from torchvision.transforms.v2 import Resize as ResizeBytes

# How much finer than what CLIP sees a picture must be, so that it may be decoded no finer: at 3.2
# times, the vectors' cosines to the plain path's were 0.9994 at least, on photographs and on noise;
# at twice, 0.998.
_FINER = 3.2


# How many times as long as wide a picture may be before its ends are cut off: its shorter side is
# made to fit, and CLIP sees the square in its middle.
_LONGEST = 32


def _without_far_ends(image: Image.Image) -> Image.Image:
    longest = _LONGEST * min(image.size)
    width, height = (min(side, longest) for side in image.size)
    if (width, height) == image.size:
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


class Preprocessing:
    """What open_clip does to a picture, to within one of 255 levels, in a fraction of the time.

    Pillow's resizing takes longer than to decode a picture. Torch's does the same to bytes with
    vector instructions. What waits for the encoder and is copied to its device are bytes too:
    to normalise them is the device's work.

    `enough` is how many pixels each side of a picture must have that more make no difference.
    """

    def __init__(self, transform: Compose) -> None:
        """Take open_clip's own transform: steps on a picture, to a tensor, then normalising."""
        *steps, _, normalize = transform.transforms
        if not isinstance(normalize, Normalize):
            raise TypeError(f"not open_clip's preprocessing: {transform}")
        resize: Any = steps[0]
        self._crops = isinstance(resize, Resize) and isinstance(resize.size, int)
        if isinstance(resize, Resize):
            steps[:1] = [PILToTensor(), ResizeBytes(resize.size, resize.interpolation)]
        else:
            steps.append(PILToTensor())
        self._pixels = Compose(steps)
        self._normalize = normalize
        seen = self(Image.new("RGB", (1, 1)))
        self.enough = math.ceil(_FINER * max(seen.shape[1:]))

    def __repr__(self) -> str:
        return f"{self._pixels} {self._normalize}"

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the pixels [3, H, W] uint8 that CLIP sees of an RGB picture."""
        if self._crops:
            image = _without_far_ends(image)
        pixels: Tensor = self._pixels(image)
        return pixels

    def normalized(self, pixels: Tensor, precision: torch.dtype = torch.float32) -> Tensor:
        """Return what the model takes [N, 3, H, W], of pixels [N, 3, H, W] uint8.

        In one pass that computes in float32 whatever the precision, which has all 256 levels:
        whole batches of float32 in between would take as long as the system needs to hand out
        their memory, twenty times as long.
        """
        mean, std = (
            255 * torch.as_tensor(by_channel, dtype=torch.float32, device=pixels.device)
            for by_channel in (self._normalize.mean, self._normalize.std)
        )
        return functional.batch_norm(pixels.to(precision), mean, std.square(), eps=0.0)

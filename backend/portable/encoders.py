"""The CLIP that a version belongs to."""

from __future__ import annotations

from backend.clip.encoder import Encoder, load_encoder
from backend.errors import EncoderError
from backend.store.versions import Version


def load_encoder_of(version: Version, name: str, pretrained: str | None, device: str) -> Encoder:
    """Load the CLIP of a version; it computes in the version's precision, whatever the device.

    Raises EncoderError where `name` and `pretrained` are another one, or cannot be loaded.
    """
    # The last part of an identity.
    precision = version.encoder.rpartition("-")[2]
    encoder = load_encoder(name, pretrained, device, precision)
    if encoder.identity != version.encoder:
        raise EncoderError(
            f"{version.name} was made with the CLIP {version.encoder}, and this is "
            f"{encoder.identity}: set CLIP_MODEL and CLIP_PRETRAINED as they were then"
        )
    return encoder

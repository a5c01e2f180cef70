"""What a CLIP runs on: the device, its precision, the cores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backend.errors import SettingsError

if TYPE_CHECKING:
    import torch


def find_device(wanted: str) -> torch.device:
    """Return the device of a name, `auto` the best there is; torch uses the cores given it.

    Raises SettingsError for one that this machine lacks.
    """
    import torch
    from joblib import cpu_count

    # A container may have fewer cores than its machine, which torch does not see.
    torch.set_num_threads(min(torch.get_num_threads(), cpu_count()))
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        if torch.backends.mps.is_available():
            return torch.device("mps")
        return torch.device("cpu")
    try:
        device = torch.device(wanted)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        raise SettingsError(
            f"DEVICE: this machine or this torch has no {wanted!r}; use auto or cpu"
        ) from None
    return device


def device_of_trainings(device: torch.device) -> torch.device:
    """Return where heads are trained that are for the embeddings of a device's CLIP.

    Full convergence needs float64, which Apple's GPUs lack.
    """
    import torch

    return torch.device("cpu") if device.type == "mps" else device


def find_precision(wanted: str, device: torch.device) -> torch.dtype:
    """Return the precision of a name, `auto` bfloat16 where the hardware computes in it.

    Raises SettingsError for an unknown name.
    """
    import torch

    named = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if wanted in named:
        return named[wanted]
    if wanted != "auto":
        raise SettingsError(f"PRECISION: {wanted!r} is none of auto, {', '.join(named)}")
    if device.type == "cuda":
        emulated = not torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.float16 if emulated else torch.bfloat16
    if device.type == "cpu" and _cpu_computes_bfloat16():
        return torch.bfloat16
    return torch.float32


def packs_weights(device: torch.device, precision: torch.dtype) -> bool:
    """Return whether weights can be laid out once for the matrix units that bfloat16 needs.

    What does that is torch's own, for its compiler, and may be missing in another release.
    """
    import torch

    needed = ("_is_mkldnn_bf16_supported", "_reorder_linear_weight", "_linear_pointwise")
    return (
        device.type == "cpu"
        and precision is torch.bfloat16
        and all(hasattr(torch.ops.mkldnn, operator) for operator in needed)
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def _cpu_computes_bfloat16() -> bool:
    import torch

    # Where these are missing or false, bfloat16 is emulated and slower than float32.
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(bool(getattr(torch.cpu, check, lambda: False)()) for check in checks)

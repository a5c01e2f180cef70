"""A GPU for machines without one: its tensors say that they are on it and compute on the CPU.

What mixes devices fails as on a GPU, so that code for GPUs can be run where there is none. It says
nothing of how long that takes there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

T = TypeVar("T")

# Operations that take tensors of several devices: copies, and indices that may be on the CPU.
_COPIES = {"_to_copy", "copy_"}
_INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}


class _Elsewhere(Tensor):
    """A tensor that says it is on a device; `content` is on the CPU."""

    content: Tensor

    def __repr__(self) -> str:
        return f"{self.content} on {self.device}"

    @staticmethod
    def __new__(cls, real: Tensor, device: torch.device) -> _Elsewhere:
        tensor: _Elsewhere = Tensor._make_wrapper_subclass(
            cls,
            real.shape,
            strides=real.stride(),
            storage_offset=real.storage_offset(),
            dtype=real.dtype,
            device=device,
        )
        tensor.content = real
        return tensor

    @classmethod
    def __torch_dispatch__(
        cls,
        operation: Any,
        _types: object,
        arguments: tuple[Any, ...] = (),
        named: Mapping[str, Any] | None = None,
    ) -> Any:
        return _dispatch(operation, arguments, dict(named or {}))


class _Operations(TorchDispatchMode):
    """Has tensors made on the device, of which an operation has none yet."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    def __torch_dispatch__(
        self,
        operation: Any,
        _types: object,
        arguments: tuple[Any, ...] = (),
        named: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(named or {})
        wanted = named.get("device")
        if wanted is None or torch.device(wanted).type != self._device.type:
            return operation(*arguments, **named)
        return _dispatch(operation, arguments, named)


class _Functions(TorchFunctionMode):
    """Has done what never comes to an operation."""

    def __torch_function__(
        self,
        function: Any,
        _types: object,
        arguments: tuple[Any, ...] = (),
        named: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(named or {})
        if function in (torch.tensor, torch.as_tensor):
            wanted = named.pop("device", None)
            made = function(*arguments, **named)
            return made if wanted is None else made.to(wanted)
        if function is Tensor.numpy and isinstance(arguments[0], _Elsewhere):
            raise TypeError(f"a tensor on {arguments[0].device} is no array")
        if function is Tensor.pin_memory:
            return arguments[0]
        if function is Tensor.__getitem__ and isinstance(arguments[1], list):
            return arguments[0][torch.tensor(arguments[1])]
        return function(*arguments, **named)


def _dispatch(operation: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    name = operation.overloadpacket.__name__
    tensors = [leaf for leaf in tree_leaves((arguments, named)) if isinstance(leaf, Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, _Elsewhere)]
    _refuse_mixed(name, arguments, tensors)
    device = there[0].device if there else None
    if named.get("device") is not None:
        device = torch.device(named["device"])
        named["device"] = torch.device("cpu")
    elif name in _COPIES:
        device = arguments[0].device
    if name == "cudnn_batch_norm":
        operation = _cudnn_batch_norm
    result = operation(*tree_map(_real, arguments), **tree_map(_real, named))
    if name == "_local_scalar_dense":
        return result
    if name.endswith("_") and isinstance(arguments[0], Tensor):
        return arguments[0]
    if device is None or device.type == "cpu":
        return result
    return tree_map(
        lambda each: _Elsewhere(each, device) if isinstance(each, Tensor) else each, result
    )


def _refuse_mixed(name: str, arguments: Sequence[Any], tensors: Sequence[Tensor]) -> None:
    if name in _COPIES:
        return
    if name in _INDEXED:
        own, _, *values = arguments
        if not isinstance(own, _Elsewhere) and any(isinstance(it, _Elsewhere) for it in tensors):
            raise RuntimeError(f"{name}: indices elsewhere, of a tensor on the CPU")
        tensors = [own, *(value for value in values if isinstance(value, Tensor))]
    # A number may come from anywhere.
    devices = {tensor.device.type for tensor in tensors if tensor.ndim}
    if len(devices) > 1:
        raise RuntimeError(f"{name}: expected all tensors to be on the same device: {devices}")


def _cudnn_batch_norm(*arguments: Any) -> tuple[Tensor, ...]:
    return *torch.ops.aten.native_batch_norm(*arguments), torch.empty(0)


def _real(value: Any) -> Any:
    return value.content if isinstance(value, _Elsewhere) else value


class _AtOnce:
    """An executor whose work is done by the caller: what is on the device is so in its thread."""

    def __init__(self, *_: object) -> None:
        pass

    def submit(self, work: Callable[..., T], *arguments: Any) -> Future[T]:
        done: Future[T] = Future()
        try:
            done.set_result(work(*arguments))
        except Exception as error:  # noqa: BLE001 - raised by who asks for the result
            done.set_exception(error)
        return done


@contextmanager
def other_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """Yield a device of NVIDIA's that this thread may use as if it were there."""
    device = torch.device("cuda", 0)
    torch._C._ensureCUDADeviceGuardSet()
    monkeypatch.setattr("backend.clip.encoder.ThreadPoolExecutor", _AtOnce)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    # In-place operations of inference tensors need a counter that wrapped tensors have not.
    monkeypatch.setattr(torch, "inference_mode", torch.no_grad)
    on_cpu = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device=None: on_cpu())
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with _Functions(), _Operations(device):
            yield device
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)

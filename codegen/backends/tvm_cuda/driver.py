"""The CUDA driver, as far as it takes to run a cubin: load it, find a function, put launches on a stream.

A launch allocates nothing on the card and waits for nothing, so it may be captured in a graph.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import POINTER, byref, c_char_p, c_int, c_uint, c_void_p
from dataclasses import dataclass
from typing import Any

from codegen.backends.tvm_cuda.launch import Launch
from codegen.errors import BackendUnavailableError, CudaDriverError

LIBRARY = "libcuda.so.1"

_MOST_DYNAMIC_SHARED_BYTES = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_ALLOWED_UNASKED = 48 * 1024

_CALLS: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuCtxPushCurrent_v2": (c_void_p,),
    "cuCtxPopCurrent_v2": (POINTER(c_void_p),),
    "cuModuleLoadData": (POINTER(c_void_p), c_char_p),
    "cuModuleGetFunction": (POINTER(c_void_p), c_void_p, c_char_p),
    "cuFuncSetAttribute": (c_void_p, c_int, c_int),
    "cuLaunchKernel": (c_void_p, *(c_uint,) * 7, c_void_p, POINTER(c_void_p), POINTER(c_void_p)),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
}


@dataclass(frozen=True)
class CudaFunction:
    """A kernel that is loaded on one card.

    Attributes:
        driver: that loaded it.
        name: of the CUDA function.
        handle: the driver's, of the function.
        context: the driver's, of the card.
        shared_bytes: dynamic shared memory of a block.
    """

    driver: CudaDriver
    name: str
    handle: c_void_p
    context: c_void_p
    shared_bytes: int

    def launch(self, launch: Launch, stream: int) -> None:
        """Put one launch on `stream`.

        Raises:
            CudaDriverError: the driver refused it, or something before it failed on the card.
        """
        values = [
            c_void_p(value) if is_address else c_int(value)
            for value, is_address in zip(launch.values, launch.are_addresses, strict=True)
        ]
        parameters = (c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        extents = (*launch.grid, *launch.block, self.shared_bytes)
        with _Current(self.driver, self.context, self.name):
            self.driver.call("cuLaunchKernel", self.name, self.handle, *extents, c_void_p(stream), parameters, None)


class CudaDriver:
    """The driver behind `library`.

    Raises:
        BackendUnavailableError: the library cannot be loaded.
    """

    def __init__(self, library: str = LIBRARY) -> None:
        try:
            loaded = ctypes.CDLL(library)
        except OSError as error:
            raise BackendUnavailableError(backend="cuda", reason=f"{error}; it comes with NVIDIA's driver") from error
        self._functions: dict[str, Callable[..., int]] = {}
        for name, types in _CALLS.items():
            function = getattr(loaded, name)
            function.argtypes, function.restype = types, c_int
            self._functions[name] = function

    def call(self, call: str, subject: str, *arguments: object) -> None:
        """Call the driver's function `call`, about `subject`.

        Raises:
            CudaDriverError: it returned an error.
        """
        code = self._functions[call](*arguments)
        if code:
            name, text = (self._said(each, code) for each in ("cuGetErrorName", "cuGetErrorString"))
            raise CudaDriverError(call=call, subject=subject, name=name, code=code, text=text)

    def function(self, image: bytes, name: str, shared_bytes: int, card: int) -> CudaFunction:
        """The function called `name` of a cubin, loaded on card number `card` until the process ends.

        It is never unloaded: a graph that was captured may launch it at any time.

        Raises:
            CudaDriverError: the cubin is for another card, has no such function, or asks for too much shared memory.
        """
        device, context, module, handle = c_int(), c_void_p(), c_void_p(), c_void_p()
        self.call("cuInit", name, 0)
        self.call("cuDeviceGet", name, byref(device), card)
        # The context that torch's tensors and streams belong to.
        self.call("cuDevicePrimaryCtxRetain", name, byref(context), device)
        with _Current(self, context, name):
            self.call("cuModuleLoadData", name, byref(module), image)
            self.call("cuModuleGetFunction", name, byref(handle), module, name.encode())
            if shared_bytes > _ALLOWED_UNASKED:
                self.call("cuFuncSetAttribute", name, handle, _MOST_DYNAMIC_SHARED_BYTES, shared_bytes)
        return CudaFunction(self, name, handle, context, shared_bytes)

    def _said(self, call: str, code: int) -> str:
        text = c_char_p()
        self._functions[call](code, byref(text))
        return (text.value or b"unknown").decode()


@dataclass(frozen=True)
class _Current:
    """Within it a card's context is that of the calling thread, which may have none or another card's."""

    driver: CudaDriver
    context: c_void_p
    subject: str

    def __enter__(self) -> None:
        self.driver.call("cuCtxPushCurrent_v2", self.subject, self.context)

    def __exit__(self, *_: object) -> None:
        self.driver.call("cuCtxPopCurrent_v2", self.subject, byref(c_void_p()))

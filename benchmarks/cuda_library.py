"""libespace_cuda.so (built by `make cuda`) for PyTorch's tensors, through ctypes."""

import ctypes
from pathlib import Path

import numpy as np
import torch

PATH = Path(__file__).parent.parent / "build/cuda/libespace_cuda.so"
OPERATIONS = ("convolution", "depthwise", "maximum", "average")
TYPES = (torch.float32, torch.float16, torch.bfloat16)
ACTIVATIONS = ("none", "relu", "relu6")
POINTERS = ("rows", "filter", "bias", "out", "grad_out", "grad_rows", "grad_filter", "grad_bias")


class _Call(ctypes.Structure):
    """EspaceCudaCall of kernels/core/cuda/c_api.h."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("operation", "type", "activation", "allow_tf32")),
        *((name, ctypes.c_int64) for name in ("batch", "channels", "filters")),
        *((name, ctypes.c_void_p) for name in (*POINTERS, "scratch")),
        ("scratch_bytes", ctypes.c_int64),
    ]


class Library:
    """The functions of the library; an error becomes a ValueError with its text.

    Args:
        path: the shared library.

    Raises:
        OSError: there is no such library, or it does not load.
    """

    def __init__(self, path: str | Path = PATH):
        self._functions = ctypes.CDLL(str(path))
        self._functions.espace_cuda_error.restype = ctypes.c_char_p

    def call(self, name: str, *arguments: object) -> None:
        """Calls espace_cuda_<name>."""
        code = getattr(self._functions, f"espace_cuda_{name}")(*arguments)
        if code:
            text = self._functions.espace_cuda_error().decode()
            raise ValueError(f"espace_cuda_{name} gave {code}: {text}")


class IndexMap:
    """A table and a spread on the current GPU.

    Args:
        library: the library.
        table: int32 [Q, taps] in [-1, rows_in).
        spread: int32 [R] in [0, Q), or None.
        rows_in: the number of input rows.
    """

    def __init__(
        self, library: Library, table: np.ndarray, spread: np.ndarray | None, rows_in: int
    ):
        self.library = library
        self.rows_in, (self.computed, self.taps) = rows_in, table.shape
        self.rows_out = self.computed if spread is None else len(spread)
        self._map = ctypes.c_void_p()
        table = np.ascontiguousarray(table, np.int32)
        spread = None if spread is None else np.ascontiguousarray(spread, np.int32)
        library.call(
            "map_create",
            table.ctypes.data_as(ctypes.c_void_p),
            *(ctypes.c_int64(size) for size in (self.computed, self.taps, rows_in)),
            None if spread is None else spread.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_int64(self.rows_out),
            ctypes.byref(self._map),
        )

    def close(self) -> None:
        """Frees it; waits for the GPU."""
        if self._map:
            self.library.call("map_free", self._map)
            self._map = ctypes.c_void_p()

    def prepare(
        self,
        tensors: dict[str, torch.Tensor],
        *,
        operation: str = "convolution",
        activation: str = "none",
        tf32: bool = False,
    ) -> "Call":
        """A call that can be run many times.

        Args:
            tensors: by the names in POINTERS, contiguous and on the GPU; "rows" [B, M, C] and
                "out" or "grad_out" [B, R, N] must be there.
            operation: one of OPERATIONS.
            activation: one of ACTIVATIONS.
            tf32: whether float32 may be multiplied in TF32.
        """
        return Call(self, self._map, tensors, operation, activation, tf32)


class Call:
    """What `IndexMap.prepare` returns; holds the tensors and the scratch memory."""

    def __init__(self, index_map, handle, tensors, operation, activation, tf32):
        for name, tensor in tensors.items():
            if not (tensor.is_cuda and tensor.is_contiguous()):
                raise ValueError(f"{name} must be contiguous and on the GPU")
        rows = tensors["rows"]
        shown = tensors.get("out", tensors.get("grad_out"))
        if shown.shape[1] != index_map.rows_out or rows.shape[1] != index_map.rows_in:
            raise ValueError(f"sizes do not fit: {rows.shape}, {shown.shape}")
        self._library, self._map, self._tensors = index_map.library, handle, tensors
        self._call = _Call(
            operation=OPERATIONS.index(operation),
            type=TYPES.index(rows.dtype),
            activation=ACTIVATIONS.index(activation),
            allow_tf32=int(tf32),
            batch=rows.shape[0],
            channels=rows.shape[2],
            filters=shown.shape[2],
            **{name: tensor.data_ptr() for name, tensor in tensors.items()},
        )
        needed = max(self._scratch(0), self._scratch(1))
        self._memory = torch.empty(needed, dtype=torch.uint8, device=rows.device)
        self._call.scratch, self._call.scratch_bytes = self._memory.data_ptr(), needed

    def _scratch(self, gradients: int) -> int:
        needed = ctypes.c_int64()
        pointers = ctypes.byref(self._call), ctypes.c_int32(gradients), ctypes.byref(needed)
        self._library.call("scratch", self._map, *pointers)
        return needed.value

    def _run(self, name: str) -> None:
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        self._library.call(name, self._map, ctypes.byref(self._call), stream)

    def forward(self) -> None:
        """Queues the forward pass on PyTorch's current stream."""
        self._run("forward")

    def gradients(self) -> None:
        """Queues the gradients that there are tensors for."""
        self._run("gradients")

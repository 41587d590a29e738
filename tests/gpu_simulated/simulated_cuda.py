# SPDX-License-Identifier: Apache-2.0
"""A simulated CUDA device, a pytest plugin: the arithmetic of the CPU, CUDA's rules, a log of what makes a host wait.

    PYTHONPATH=tests/gpu_simulated python -m pytest -p simulated_cuda tests/gpu_simulated

The plugin is loaded before torch, as the library must be that gives a CPU build of PyTorch a device of this name. A
tensor on ``cuda`` is a wrapper of one on the CPU, or of one without content (``shapes_only``), with which steps of the
paper's size take seconds. What all code sees as a device is real to autograd, autocast and the optimizers; there are no
CUDA kernels, no cuDNN, no streams and no speed. With a CUDA build of PyTorch the tests run on the real device instead,
and only what a log shows is skipped. Uses private names of torch: look here first when a new version breaks the tests.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TORCH = Path(importlib.util.find_spec("torch").submodule_search_locations[0])  # type: ignore[union-attr,index]


def _load_library() -> str:
    """Build and load the library; the reason why there is no simulated device, or an empty text."""
    if not re.search(r"^cuda\b.*= None$", (TORCH / "version.py").read_text(), re.MULTILINE):
        return "this PyTorch is built for CUDA; the tests take the real device"
    if "torch" in sys.modules:
        return "torch was imported before the plugin: use -p simulated_cuda"
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        return "there is no C++ compiler"
    folder = Path(tempfile.gettempdir(), f"simulated_cuda_{sysconfig.get_platform()}_{_digest()}")
    library = folder / "device_guard.so"
    if not library.exists():
        folder.mkdir(mode=0o700, exist_ok=True)
        part = library.with_suffix(f".{id(folder)}.so")
        include = [f"-I{TORCH / 'include'}", f"-I{TORCH / 'include/torch/csrc/api/include'}"]
        link = [f"-L{TORCH / 'lib'}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{TORCH / 'lib'}"]
        source = [*include, str(HERE / "device_guard.cpp")]
        command = [compiler, "-shared", "-fPIC", "-O1", "-std=c++20", *source, "-o", str(part), *link]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        if built.returncode:
            return f"the library cannot be built: {built.stderr.strip().splitlines()[0][:200]}"
        part.replace(library)
    try:
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        return f"the library cannot be loaded: {error}"
    return ""


def _digest() -> str:
    import hashlib

    content = (HERE / "device_guard.cpp").read_bytes() + (TORCH / "version.py").read_bytes() + str(TORCH).encode()
    return hashlib.sha256(content).hexdigest()[:16]


#: why there is no simulated device; empty if there is one
UNAVAILABLE = _load_library()

import torch  # noqa: E402
from torch.utils import _pytree as pytree  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing  # noqa: E402

aten = torch.ops.aten
#: operations after which the host knows something that it must wait for
READS = {
    aten._local_scalar_dense.default: "item",
    aten.is_nonzero.default: "item",
    aten.equal.default: "equal",
    aten.nonzero.default: "nonzero",
    aten.masked_select.default: "masked_select",
    aten._unique2.default: "unique",
    aten.unique_dim.default: "unique",
    aten.unique_consecutive.default: "unique",
    aten.repeat_interleave.Tensor: "repeat_interleave",
    aten.bincount.default: "bincount",
}
COPIES = {aten._to_copy.default, aten.copy_.default, aten._foreach_copy_.default, aten.copy.default}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
#: operations that start no kernel
VIEWS = {
    "view",
    "_unsafe_view",
    "t",
    "transpose",
    "permute",
    "expand",
    "slice",
    "select",
    "unsqueeze",
    "squeeze",
    "detach",
    "alias",
    "split",
    "split_with_sizes",
    "unbind",
    "as_strided",
    "view_as_real",
    "view_as_complex",
    "_reshape_alias",
    "unfold",
    "narrow",
    "diagonal",
    "lift_fresh",
    "sym_size",
    "_conj",
    "movedim",
    "empty",
    "empty_strided",
    "empty_like",
    "new_empty",
    "new_empty_strided",
}


class DevicesMixedError(RuntimeError):
    """A tensor of the CPU met one of the device."""


@dataclass
class Log:
    """What happened on the device, by phase: ``step`` and ``evaluation`` are iterations of MONAI's engines."""

    simulated: bool = True
    phase: str = "other"
    #: of trainers' and evaluators' iterations
    iterations: Counter = field(default_factory=Counter)
    #: (phase, what, where) -> how often the host waited
    waits: Counter = field(default_factory=Counter)
    kernels: Counter = field(default_factory=Counter)
    moved_bytes: Counter = field(default_factory=Counter)
    mixed: list[str] = field(default_factory=list)

    def waited(self, phase: str = "step") -> dict[str, int]:
        """What made the host wait in a phase, with the line of the code."""
        return {f"{what} at {where}": count for (of, what, where), count in self.waits.items() if of == phase}

    def wait(self, what: str) -> None:
        """Note that the host waits."""
        self.waits[self.current_phase(), what, _caller()] += 1

    def current_phase(self) -> str:
        """The phase of this thread: one that Python started (the writer of states) is in none; autograd's are."""
        thread = threading.current_thread()
        ours = thread is threading.main_thread() or isinstance(thread, threading._DummyThread)
        return self.phase if ours else "background"

    def clear(self) -> None:
        """Forget everything."""
        for counter in (self.iterations, self.waits, self.kernels, self.moved_bytes):
            counter.clear()
        self.mixed.clear()


LOG = Log()
_shapes_only = False
_OURS = ("/fedmonai/", "/monai/", "/ignite/", "/torch/optim/", "/torch/amp/")


def _caller() -> str:
    """The innermost line of this package, MONAI, ignite or a part of torch that is written in Python."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        for part in _OURS:
            if part in name:
                return f"{part[1:]}{name.rsplit(part, 1)[1]}:{frame.f_lineno}"
        frame = frame.f_back
    return "the backward pass"


class SimulatedTensor(torch.Tensor):
    """A tensor on ``cuda:0`` whose values, or only whose shape, another tensor holds."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> SimulatedTensor:
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, held.size(), device="cuda:0", requires_grad=False, **layout)
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __repr__(self) -> str:  # type: ignore[override]
        return f"SimulatedTensor({tuple(self.shape)}, {self.dtype})"

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it to host first.")

    __array__ = numpy

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("a tensor of the device is pickled: whoever reads this file needs a GPU")


def _is_simulated(value: Any) -> bool:
    return isinstance(value, SimulatedTensor)


def _size(tree: Any) -> int:
    return sum(t.numel() * t.element_size() for t in pytree.tree_leaves(tree) if isinstance(t, torch.Tensor))


def _refuse_mixed(func: Any, args: Any, on_device: list, on_host: list) -> None:
    """CUDA's rule: of the host's tensors only those without dimensions may meet tensors of the device."""
    if not on_device or not on_host or func in COPIES:
        return
    wrong = [tensor for tensor in on_host if tensor.dim()]
    if func in INDEXING:  # indices may lie on the host; they are copied
        wrong = [] if _is_simulated(args[0]) else [args[0]]
        for index in args[1]:
            if isinstance(index, torch.Tensor) and not _is_simulated(index):
                LOG.wait("blocking upload of an index")
        if func is not aten.index.Tensor and not _is_simulated(args[2]) and args[2].dim():
            wrong.append(args[2])
    if wrong:
        text = f"{func}: found tensors on cuda:0 and on cpu {tuple(wrong[0].shape)}"
        LOG.mixed.append(f"{text} at {_caller()}")
        raise DevicesMixedError(text)


def _note_copies(func: Any, args: Any, kwargs: Any, to_device: bool) -> None:
    pairs: list[tuple[bool, bool, Any]] = []
    if func is aten._to_copy.default:
        pairs = [(to_device, _is_simulated(args[0]), kwargs.get("non_blocking"))]
    elif func is aten.copy_.default:
        pairs = [(_is_simulated(args[0]), _is_simulated(args[1]), (*args, *kwargs.values())[2:3] == (True,))]
    elif func is aten._foreach_copy_.default:
        lazy = (*args, *kwargs.values())[2:3] == (True,)
        pairs = [(_is_simulated(a), _is_simulated(b), lazy) for a, b in zip(args[0], args[1], strict=True)]
    for into, source, lazy in pairs:
        if into != source and not lazy:
            LOG.wait("blocking upload" if into else "download")


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    on_device = [t for t in tensors if _is_simulated(t)]
    device = kwargs.get("device")
    to_device = bool(on_device) if device is None else torch.device(device).type == "cuda"
    if not on_device and not to_device:
        return func(*args, **kwargs)
    _refuse_mixed(func, args, on_device, [t for t in tensors if not _is_simulated(t)])
    _note_copies(func, args, kwargs, to_device)
    if func in READS and on_device:
        LOG.wait(READS[func])
    masks = (torch.bool, torch.uint8)
    by_mask = func in INDEXING and any(isinstance(i, torch.Tensor) and i.dtype in masks for i in args[1])
    if by_mask and (func is aten.index.Tensor or args[2].numel() != 1):
        LOG.wait("index by a mask")
    name = func._schema.name.split("::")[1]
    if device is not None:
        kwargs = {**kwargs, "device": torch.device("meta" if _shapes_only and to_device else "cpu")}
    kwargs = {key: value for key, value in kwargs.items() if key != "pin_memory"}
    inner, inner_kwargs = pytree.tree_map_only(SimulatedTensor, lambda t: t.held, (args, kwargs))
    compute = _shape_of if _shapes_only else func
    result = compute(*([func] if _shapes_only else []), *inner, **inner_kwargs)
    if to_device and func not in (aten._local_scalar_dense.default, aten.equal.default):
        result = pytree.tree_map_only(torch.Tensor, lambda t: t if _is_simulated(t) else SimulatedTensor(t), result)
    if name not in VIEWS:
        LOG.kernels[LOG.current_phase()] += 1
        LOG.moved_bytes[LOG.current_phase()] += _size(args) + _size(result)
    return return_and_correct_aliasing(func, args, kwargs, result)


def _shape_of(func: Any, *args: Any, **kwargs: Any) -> Any:
    """The result of an operation without its values."""
    if func is aten._local_scalar_dense.default:
        return 1.0 if args[0].is_floating_point() else 1
    if func is aten.equal.default:
        return False
    if func is aten._to_copy.default and kwargs.get("device", args[0].device).type == "cpu":
        return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
    if func is aten.copy_.default and args[0].device.type == "cpu":
        return args[0]
    if func._schema.name.startswith("aten::_fused_"):
        return None
    copies = func in COPIES
    args, kwargs = pytree.tree_map_only(
        torch.Tensor, lambda t: t.to("meta") if not t.is_meta and (t.dim() or copies) else t, (args, kwargs)
    )
    return func(*args, **kwargs)


class _Everywhere(TorchDispatchMode):
    """Operations without a tensor of the device among their arguments may make one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _patch_torch() -> None:
    """What Python code of torch asks of a device before it uses it."""
    answers: dict[str, Any] = {
        "_lazy_init": None,
        "is_available": True,
        "is_bf16_supported": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_name": "simulated",
        "mem_get_info": (1 << 36, 1 << 37),
        "memory_reserved": 0,
        "memory_allocated": 0,
        "manual_seed": None,
        "manual_seed_all": None,
        "set_rng_state": None,
        "empty_cache": None,
        "set_device": None,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *args, answer=answer, **kwargs: answer)
    torch.cuda.get_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    torch.cuda.synchronize = lambda *args: LOG.wait("synchronize")
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False  # type: ignore[attr-defined]
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    torch._C._set_only_lift_cpu_tensors(True)


def _name_phases() -> None:
    """Tell iterations of engines, and what handlers do in them, from all else."""
    from ignite.engine import Engine
    from monai.engines import SupervisedEvaluator, SupervisedTrainer

    def within(owner: type, name: str, phase_of: Any, counted: bool) -> None:
        inner = getattr(owner, name)

        def outer(self: Any, *args: Any, **kwargs: Any) -> Any:
            before, LOG.phase = LOG.phase, phase_of(self, *args) or LOG.phase
            LOG.iterations[LOG.phase] += counted
            try:
                return inner(self, *args, **kwargs)
            finally:
                LOG.phase = before

        setattr(owner, name, outer)

    def of_event(engine: Any, event: Any, *rest: Any) -> str | None:
        name = str(event).rsplit(".", 1)[-1].lower()
        return "step" if isinstance(engine, SupervisedTrainer) and name.startswith(("iteration", "get_batch")) else None

    within(SupervisedTrainer, "_iteration", lambda *_: "step", True)
    within(SupervisedEvaluator, "_iteration", lambda *_: "evaluation", True)
    within(Engine, "_fire_event", of_event, False)


@contextlib.contextmanager
def device(shapes_only: bool = False) -> Iterator[Log]:
    """Inside the block there is a CUDA device; gives its log, which is empty where the device is real."""
    global _shapes_only
    LOG.clear()
    if UNAVAILABLE:
        LOG.simulated = False
        yield LOG
        return
    import monai.data

    if not getattr(torch.cuda, "simulated", False):
        torch.cuda.simulated = True  # type: ignore[attr-defined]
        _patch_torch()
        _name_phases()
        monai.data.set_track_meta(False)  # MONAI's tensors with metadata cannot wrap a subclass; devices are the same
    _shapes_only = shapes_only
    with _Everywhere():
        yield LOG

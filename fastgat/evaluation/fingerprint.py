"""Digests of networks and batches: what a kept result belongs to."""

import argparse
import ast
import contextlib
import dataclasses
import functools
import hashlib
import importlib.machinery
import importlib.util
import sys
import sysconfig
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastgat.batch import Batch

PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
LIBRARIES = frozenset({"abc", "builtins", "collections", "enum", "functools", "math", "numpy", "torch", "typing"})
"""Packages whose code is known by its name: torch's version is part of every digest."""
INSTALLED = tuple({sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")})
"""Where Python and packages are."""
PACKAGES = frozenset({"site-packages", "dist-packages"})  # folders of packages, wherever they are
OF_EVERY_MODULE = frozenset(vars(nn.Module()))  # what torch keeps in every module: tensors, children and hooks


def model_fingerprint(model: nn.Module) -> str:
    """A digest of what a module is made of: its structure, tensors and attributes, and files of code.

    Of an attribute counts what is plain in it, in containers, functions and objects of the user's too. The files are
    those that its modules' classes are from, and those that these import from, up to installed packages. What else
    decides its answers, such as hooks and values that its code finds elsewhere, is left to `Subject.digest`. Train or
    eval mode does not count.
    """
    digest = _Digest()
    digest.add(torch.__version__)
    digest.add_network(model)
    return digest.text()


def code_fingerprint(module: str) -> str:
    """A digest of the file of a module that is loaded, and of those that it imports, up to installed packages."""
    digest = _Digest()
    digest.add_file(module)
    return digest.text()


def batch_fingerprint(batch: Batch) -> str:
    """A digest of the images and labels of a batch."""
    digest = _Digest()
    digest.add(tuple(batch))
    return digest.text()


class _Digest:
    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._modules: set[str] = set()
        self._holders: set[int] = set()  # what `add_state` is within

    def text(self) -> str:
        return self._hash.hexdigest()[:32]

    def add(self, value: Any) -> None:
        """Take in a plain value, a tensor, an array, or a container of them."""
        self._write(type(value).__name__.encode())
        if isinstance(value, Tensor):
            self._add_tensor(value)
        elif isinstance(value, np.ndarray):
            self.add((value.shape, str(value.dtype), value.tobytes()))
        elif isinstance(value, Mapping):
            self.add(list(value.items()))
        elif isinstance(value, set | frozenset):
            self.add(sorted(map(repr, value)))
        elif isinstance(value, list | tuple):
            self._write(len(value).to_bytes(8, "little"))
            for item in value:
                self.add(item)
        else:
            self._write(repr(value).encode())

    def _write(self, content: bytes) -> None:
        self._hash.update(len(content).to_bytes(8, "little"))
        self._hash.update(content)

    def _add_tensor(self, tensor: Tensor) -> None:
        tensor = tensor.detach()
        self.add((tuple(tensor.shape), str(tensor.dtype), str(tensor.layout)))
        if tensor.is_quantized:
            tensor = tensor.dequantize()
        if tensor.layout != torch.strided:
            tensor = tensor.to_dense()
        flat = tensor.resolve_conj().resolve_neg().cpu().contiguous().flatten()
        self._hash.update(flat.view(torch.uint8).numpy().data)

    def add_state(self, value: Any) -> None:
        """Take in what is plain in a value, in what it holds, and what kind of thing the rest is."""
        if _is_plain(value):
            self.add(value)
            return
        self._write(type(value).__name__.encode())
        if id(value) in self._holders:  # it holds itself
            return
        self._holders.add(id(value))
        if isinstance(value, nn.Module):
            self.add_network(value)
        else:
            for part in _parts(value):
                self.add_state(part)
        self._holders.remove(id(value))

    def add_network(self, network: nn.Module) -> None:
        """Its modules' classes and plain attributes, their files, and its tensors."""
        firsts: dict[Any, str] = {}  # the first name of a module or tensor that stands in several places
        for name, module in network.named_modules(remove_duplicate=False):
            if (first := firsts.setdefault(module, name)) != name:
                self.add((name, "is", first))
                continue
            self.add((name, f"{type(module).__module__}.{type(module).__qualname__}"))
            if isinstance(module, torch.jit.ScriptModule):
                self._write(module.save_to_buffer())  # its code holds constants, once frozen all weights
                continue
            for kind in type(module).__mro__:
                self.add_file(kind.__module__)
            attributes = {key: value for key, value in vars(module).items() if key not in OF_EVERY_MODULE}
            self.add_state(dict(sorted(attributes.items())))
        named = network.named_parameters, network.named_buffers
        for name, tensor in (pair for each in named for pair in each(remove_duplicate=False)):
            first = firsts.setdefault(tensor, name)
            self.add((name, tensor.device.type, tensor) if first == name else (name, "is", first))

    def add_file(self, module: str) -> None:
        """The file of a module, where it has one, and those of what it imports, up to installed packages."""
        if module in self._modules:
            return
        self._modules.add(module)
        file = _file(module)
        self.add((module, file.read_bytes() if file is not None and not _is_library(module) else None))
        if file is None or _is_installed(module, file):
            return
        for name in sorted(_imports(module, file) | _origins(module)):
            if (other := _file(name)) is not None and not _is_installed(name, other):
                self.add_file(name)


def _parts(value: Any) -> Iterable[Any]:
    """What decides how a value that is not plain behaves, as far as it can be seen."""
    if isinstance(value, Mapping):
        return [part for pair in value.items() for part in pair]
    if isinstance(value, list | tuple):
        return value
    if isinstance(value, functools.partial):
        return value.func, value.args, value.keywords
    if isinstance(value, types.MethodType):
        return value.__func__, value.__self__
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if cell != types.CellType()]
        return f"{value.__module__}.{value.__qualname__}", value.__defaults__, value.__kwdefaults__, cells
    kind = type(value)
    is_settings = dataclasses.is_dataclass(kind) or isinstance(value, types.SimpleNamespace | argparse.Namespace)
    file = _file(kind.__module__)
    if is_settings or not (_is_library(kind.__module__) or (file and _is_installed(kind.__module__, file))):
        return kind.__qualname__, dict(sorted(getattr(value, "__dict__", {}).items()))
    return ()


def _imports(module: str, file: Path) -> set[str]:
    """The modules that a file's import statements name, wherever they stand in it, and the packages they are in."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    named: set[str] = set()
    try:
        nodes = list(ast.walk(ast.parse(file.read_bytes())))
    except (SyntaxError, ValueError):  # no Python
        return named
    for node in nodes:
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            with contextlib.suppress(ImportError):  # out of its package
                origin = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
                named |= {origin, *(f"{origin}.{alias.name}" for alias in node.names)}
    return {".".join(parts[:n]) for parts in (name.split(".") for name in named) for n in range(1, len(parts) + 1)}


def _origins(module: str) -> set[str]:
    """The modules that what a module holds is from; its own submodules appear there once somebody imports them."""
    names: set[str] = set()
    for value in vars(sys.modules[module]).values() if module in sys.modules else ():
        known = value if isinstance(value, type | types.FunctionType) else type(value)
        names.add(value.__name__ if isinstance(value, types.ModuleType) else known.__module__)
    return {name for name in names if not name.startswith(f"{module}.")}


def _file(module: str) -> Path | None:
    """The file of a module, found as an import would find it, without running anything."""
    if module in sys.modules:
        path = Path(getattr(sys.modules[module], "__file__", None) or "")
        return path if path.is_file() else None
    spec, where = None, None
    for count in range(1, module.count(".") + 2):
        spec = importlib.machinery.PathFinder.find_spec(".".join(module.split(".")[:count]), where)
        if spec is None:
            return None
        where = spec.submodule_search_locations or []
    path = Path(spec.origin or "") if spec is not None else Path()
    return path if path.is_file() else None


def _is_installed(module: str, file: Path) -> bool:
    """Whether a module is a package's, or Python's, and so changes only with the environment."""
    known = _is_library(module) or module.partition(".")[0] == "fastgat"
    return known or not PACKAGES.isdisjoint(file.parts) or any(map(file.is_relative_to, INSTALLED))


def _is_plain(value: Any) -> bool:
    """Whether a value is plain, a tensor, an array, or a container of such: any process describes it alike."""
    if isinstance(value, np.ndarray):
        return not value.dtype.hasobject
    if isinstance(value, dict):
        return all(isinstance(key, PLAIN) and _is_plain(item) for key, item in value.items())
    if isinstance(value, set | frozenset):
        return all(isinstance(item, PLAIN) for item in value)
    return isinstance(value, (*PLAIN, Tensor)) or (isinstance(value, list | tuple) and all(map(_is_plain, value)))


def _is_library(module: str) -> bool:
    return module.partition(".")[0] in LIBRARIES

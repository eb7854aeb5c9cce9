"""Digests of networks and batches: what a kept result belongs to."""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib.machinery
import importlib.util
import os
import pickle
import sys
import sysconfig
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastgat.batch import Batch

PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
FUNCTIONS = (types.FunctionType, types.MethodType, staticmethod, classmethod, property, functools.cached_property)
COUNTED = (*FUNCTIONS, *PLAIN, functools.partial, functools._lru_cache_wrapper, types.ModuleType, Tensor, nn.Module)
"""What counts among a function's globals, beside data."""
LIBRARIES = frozenset({"abc", "builtins", "collections", "enum", "functools", "math", "numpy", "torch", "typing"})
"""Packages whose code is known by its name: torch's version is part of every digest."""
INSTALLED = tuple({sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")})
"""Where Python and packages are."""
PACKAGES = frozenset({"site-packages", "dist-packages"})
"""Folders of packages, wherever they are."""
OF_EVERY_MODULE = frozenset(vars(nn.Module()))
"""What torch keeps in every module: tensors and children, which are counted by themselves, and hooks."""


def model_fingerprint(model: nn.Module) -> str:
    """A digest of a module: its structure, tensors, attributes, hooks and kind of device, and the code of its classes.

    The code is that of the classes and hooks, with the functions and values that it finds among its globals, and the
    whole files that the classes are from, and those that these import from, up to installed packages. Train or eval
    mode does not count. A module with an attribute that cannot be described gets a digest that no other call returns.
    """
    digest = _Digest()
    digest.add(torch.__version__)
    for kind in ("forward_pre", "forward", "backward_pre", "backward"):  # hooks on every module
        digest.add(list(getattr(nn.modules.module, f"_global_{kind}_hooks").values()))
    digest.add(model)
    return digest.text()


def code_fingerprint(module: str) -> str:
    """A digest of the file of a module that is loaded, and of those that it imports, up to installed packages."""
    digest = _Digest()
    digest.add_file(module)
    return digest.text()


def batch_fingerprint(batch: Batch) -> str:
    """A digest of the images and labels of a batch."""
    digest = _Digest()
    for tensor in batch:
        digest.add(tensor)
    return digest.text()


class _Digest:
    """Takes in values of any kind, each once."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._modules: set[str] = set()
        self._seen: dict[int, tuple[int, Any]] = {}  # by address: a number, and the object, so that it stays there

    def text(self) -> str:
        return self._hash.hexdigest()[:32]

    def add(self, value: Any) -> None:
        """Take in a value: of a container its items, of a function its code, of an object its attributes."""
        self._hash.update(f"<{type(value).__module__}.{type(value).__qualname__}>".encode())
        if isinstance(value, Tensor):
            self._add_tensor(value)
        elif isinstance(value, PLAIN):
            self._hash.update(repr(value).encode())
        elif id(value) in self._seen:
            self._hash.update(str(self._seen[id(value)][0]).encode())
        else:
            self._seen[id(value)] = len(self._seen), value
            self._add_object(value)

    def _add_tensor(self, tensor: Tensor) -> None:
        self._hash.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        self._hash.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)

    def _add_object(self, value: Any) -> None:
        if isinstance(value, nn.Module):
            self._add_network(value)
        elif isinstance(value, np.ndarray) and value.dtype != object:
            self.add((value.shape, str(value.dtype), value.tobytes()))
        elif isinstance(value, Mapping):
            self.add([part for item in value.items() for part in item])
        elif isinstance(value, set | frozenset):
            self.add(sorted(map(repr, value)))
        elif isinstance(value, list | tuple):
            for item in value:
                self.add(item)
        elif isinstance(value, types.CodeType):
            self.add((value.co_name, value.co_code, value.co_names, value.co_consts))
        elif isinstance(value, functools.partial):
            self.add((value.func, value.args, value.keywords))
        elif isinstance(value, functools._lru_cache_wrapper):
            self.add(value.__wrapped__)
        elif isinstance(value, type):
            self._add_class(value)
        elif isinstance(value, FUNCTIONS):
            self._add_function(value)
        elif isinstance(value, types.ModuleType):
            self.add_file(value.__name__)
        elif isinstance(value, types.BuiltinFunctionType | np.ufunc):
            self.add(f"{getattr(value, '__module__', '')} {value.__name__}")
        else:
            self._add_instance(value)

    def _add_network(self, network: nn.Module) -> None:
        """Its modules' classes, attributes and hooks, and its tensors."""
        firsts: dict[Any, str] = {}  # the first name of a module or tensor that stands in several places
        for name, module in network.named_modules(remove_duplicate=False):
            if (first := firsts.setdefault(module, name)) != name:
                self.add((name, "is", first))
                continue
            self.add((name, type(module)))
            if isinstance(module, torch.jit.ScriptModule):
                self._hash.update(module.save_to_buffer())  # its code holds constants, once frozen all weights
                continue
            for attribute, value in sorted(vars(module).items()):
                if attribute not in OF_EVERY_MODULE:
                    self.add((attribute, value))
                elif "_hooks" in attribute and value:
                    self.add(list(value.values()))  # their keys are numbers that a process gives them
        named = network.named_parameters, network.named_buffers
        for name, tensor in (pair for each in named for pair in each(remove_duplicate=False)):
            first = firsts.setdefault(tensor, name)
            self.add((name, tensor.device.type, tensor) if first == name else (name, "is", first))

    def _add_class(self, kind: type) -> None:
        """A class with those that it inherits from, up to torch's, and the files that they are from."""
        for each in kind.__mro__:
            self.add(f"{each.__module__}.{each.__qualname__}")
            if _is_library(each.__module__):
                continue
            self.add_file(each.__module__)
            for name, member in sorted(vars(each).items()):
                if (isinstance(member, FUNCTIONS) or _is_data(member)) and name not in ("__module__", "__doc__"):
                    self.add((name, member))

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

    def _add_function(self, function: Any) -> None:
        """A function's code, defaults, globals and what it closes over; of a method also its object."""
        if isinstance(function, property):
            self.add([each for each in (function.fget, function.fset) if each is not None])
        elif isinstance(function, functools.cached_property):
            self.add(function.func)
        elif isinstance(function, types.MethodType):
            self.add((function.__func__, function.__self__))
        elif isinstance(function, staticmethod | classmethod):
            self.add(function.__func__)
        elif _is_library(function.__module__ or ""):
            self.add(f"{function.__module__}.{function.__qualname__}")
        else:
            self.add((function.__code__, function.__defaults__, function.__kwdefaults__))
            for cell in function.__closure__ or ():
                with contextlib.suppress(ValueError):  # an empty one
                    self.add(cell.cell_contents)
            for name in _names(function.__code__):
                known = function.__globals__.get(name)
                if isinstance(known, COUNTED) or _is_data(known):
                    self.add((name, known))

    def _add_instance(self, value: Any) -> None:
        """An object of any other class."""
        self.add(type(value))
        attributes: Any = None
        if hasattr(value, "__dict__"):
            attributes = vars(value)
        else:
            try:
                attributes = pickle.dumps(value)
            except (TypeError, AttributeError, RuntimeError, pickle.PicklingError):
                attributes = os.urandom(16)
        self.add(attributes)


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


def _is_data(value: Any) -> bool:
    """Whether a value is a container of plain values, tensors and such containers: any process describes it alike."""
    if isinstance(value, np.ndarray):
        return value.dtype != object
    if isinstance(value, dict):
        return all(isinstance(key, PLAIN) and _is_data(item) for key, item in value.items())
    if isinstance(value, set | frozenset):
        return all(isinstance(item, PLAIN) for item in value)
    return isinstance(value, (*PLAIN, Tensor)) or (isinstance(value, list | tuple) and all(map(_is_data, value)))


def _is_library(module: str) -> bool:
    return module.partition(".")[0] in LIBRARIES


def _names(code: types.CodeType) -> list[str]:
    """The names that code looks up, its functions within included."""
    inner = [name for part in code.co_consts if isinstance(part, types.CodeType) for name in _names(part)]
    return sorted({*code.co_names, *inner})

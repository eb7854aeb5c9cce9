"""Weights from elsewhere: a file of tensors by name, copied into a module whose names may differ by a prefix.

Nothing in a file is run: torch's are read by `torch.load(weights_only=True)` alone.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import safetensors
import torch
from torch import Tensor, nn

from fastgat.engine.checkpoint import CLASSIFIER, HEADER, classifier_tensors, load_checkpoint, parse_safetensors
from fastgat.engine.load import checkpoint_path
from fastgat.errors import CheckpointError, ConfigError
from fastgat.files import read_file
from fastgat.functional import has_lazy_layers

LARGEST = 2**33  # bytes of a file of weights, at most
NESTED = ("state_dict", "model_state_dict", "model", "net", "network", "ema", "ema_state_dict", "state_dict_ema")
"""Keys under which training scripts keep a network's tensors, the first that is there being taken."""
DEPTH = 4  # how deep those keys may be nested
WRAPPERS = ("module.", "_orig_mod.")  # what DataParallel, AveragedModel and torch.compile put before names
COUNTERS = ("num_batches_tracked", "n_averaged")
"""Tensors that decide nothing in eval mode: they may be missing, or be there for nothing."""
UNUSED = "sub_block1."  # layers that the TRADES code's WideResNet has, and never uses
CODE = re.compile(r"GLOBAL ([\w.]+)")  # where torch's error says which class or function a file needs
STATISTICS = {"mean": "mean", "mu": "mean", "std": "std", "sigma": "std"}
"""How codes that normalise inside the network call its buffers, and what they are."""


def load_weights(module: nn.Module, path: Path | str) -> list[str]:
    """Copy the tensors in a file into `module`, a classifier; returns a line for each thing done to their names.

    Args:
        module: on any device; every parameter and buffer of it must be in the file, in its shape.
        path: a `.safetensors` file, another file that torch.save wrote, or a run folder or checkpoint of fastgat.
            Tensors may be nested under one of NESTED, and their names begin with one of WRAPPERS or with the name of a
            wrapping module.

    Raises CheckpointError, and leaves `module` as it was, if the file cannot be read, needs code to be read, or does
    not fit; ConfigError for a module whose lazy layers have no sizes yet.
    """
    if has_lazy_layers(module):
        raise ConfigError("layers of the classifier take their sizes from its first batch: give it one before weights")
    path = Path(path)
    if path.is_dir():
        path = checkpoint_path(path)
    tensors, notes = _read(path)
    if tensors is None:  # fastgat's
        saved = load_checkpoint(path)[0]
        plain = {name.removeprefix(CLASSIFIER): t for name, t in saved.items() if name.startswith(CLASSIFIER)}
        _check_normalization(path, plain, module.state_dict())
        try:
            matched = classifier_tensors(saved, module)
        except CheckpointError as error:
            text = str(error)
            raise CheckpointError(text if text.startswith(f"{path}:") else f"{path}: {text}") from None
    else:
        matched = _match(path, _unwrap(path, tensors, notes), module, notes)
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if name in matched:
                tensor.copy_(matched[name])
    return notes


def _read(path: Path) -> tuple[dict[str, Tensor] | None, list[str]]:
    """The tensors of a file by name, and notes; None in their place for a checkpoint of fastgat."""
    try:
        raw = read_file(path, LARGEST)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    if path.suffix == ".safetensors" or raw[8:10] == b'{"':  # other codes give it any name
        try:
            tensors, metadata = parse_safetensors(raw)
        except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError, TypeError) as error:
            raise CheckpointError(f"{path}: damaged or not a safetensors file ({error})") from None
        return (None if HEADER in metadata else tensors), []
    try:
        _check_stored(raw)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content, left_out = _unpickled(raw)
    except Exception as error:  # noqa: BLE001  # a damaged file may fail anywhere in torch's reader
        raise CheckpointError(f"{path}: {_reason(error, raw)}") from None
    notes: list[str] = []
    tensors = _descend(path, content, notes)
    if not tensors and left_out is not None:
        raise CheckpointError(f"{path}: {_reason(left_out, raw)}")
    if not tensors:
        raise CheckpointError(
            f"{path}: holds no tensors by name, at the top or under {', '.join(NESTED)} or another key"
        )
    return tensors, notes


class LeftOut:
    """Stands for an object beside the tensors whose reading would need code, such as an argparse.Namespace."""

    def __new__(cls, *args: Any) -> Self:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


def _unpickled(raw: bytes) -> tuple[Any, Exception | None]:
    """What torch.save wrote. Where that needs code, LeftOut stands for it, and torch's error is returned too."""
    try:
        return torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True), None
    except pickle.UnpicklingError as error:
        if CODE.search(str(error)) is None or not zipfile.is_zipfile(io.BytesIO(raw)):
            raise
        names = torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(raw))
        with (
            torch.serialization.safe_globals([(LeftOut, name) for name in names]),
            contextlib.suppress(pickle.UnpicklingError),  # something is filled in place, as a defaultdict is
        ):
            return torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True), error
        raise


def _check_stored(raw: bytes) -> None:
    """Raises ValueError for an archive that would unpack to more than its size: torch.save compresses nothing."""
    with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(io.BytesIO(raw)) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > len(raw):
            raise ValueError("its contents are compressed, as TorchScript's are")


def _reason(error: Exception, raw: bytes) -> str:
    """Why torch could not read a file, in a few words."""
    code = CODE.search(str(error))
    if isinstance(error, pickle.UnpicklingError) and code:
        return f"needs {code[1]} to be read, which is code and is not run; save its state_dict alone"
    what = "damaged, or not written by torch.save"
    if not raw.startswith((b"PK", b"\x80")):  # an archive, a pickle: the rest of torch's message would be on pickles
        return f"{what}: it begins with {raw[:24]!r}" if raw else f"{what}: it is empty"
    sentence = str(error).strip().partition("\n")[0].partition(". ")[0]
    return f"{what} ({sentence[:200] or type(error).__name__})"


def _descend(path: Path, content: Any, notes: list[str]) -> dict[str, Tensor]:
    """The tensors of `content`, or of a mapping in it: under one of NESTED, else under the only key with tensors."""
    for _ in range(DEPTH):
        if not isinstance(content, Mapping):
            break
        inner = [key for key in NESTED if isinstance(content.get(key), Mapping)]
        if not inner and not _named(content):
            inner = [key for key, value in content.items() if _named(value)]
            if len(inner) > 1:
                raise CheckpointError(f"{path}: holds several networks, {', '.join(map(repr, inner))}: save one alone")
        if not inner:
            break
        others = f"; {', '.join(map(repr, inner[1:]))} left alone" if inner[1:] else ""
        notes.append(f"taken from {inner[0]!r}{others}")
        content = content[inner[0]]
    return _named(content)


def _named(content: Any) -> dict[str, Tensor]:
    """The tensors that a mapping keeps under names."""
    entries = content.items() if isinstance(content, Mapping) else ()
    return {name: tensor for name, tensor in entries if isinstance(name, str) and isinstance(tensor, Tensor)}


def _unwrap(path: Path, tensors: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    """The tensors by their names without WRAPPERS."""
    plain, counts = {}, dict.fromkeys(WRAPPERS, 0)
    for name, tensor in tensors.items():
        while wrapper := next((w for w in WRAPPERS if name.startswith(w)), None):
            name, counts[wrapper] = name.removeprefix(wrapper), counts[wrapper] + 1
        if name in plain:
            raise CheckpointError(f"{path}: two of its tensors are called {name}, but for a prefix")
        plain[name] = tensor
    notes += [f"{wrapper}* -> *  ({count} tensors)" for wrapper, count in counts.items() if count]
    return plain


def _match(path: Path, tensors: dict[str, Tensor], module: nn.Module, notes: list[str]) -> dict[str, Tensor]:
    """The file's tensors by the names that they have in `module`; everything that does not fit is an error."""
    expected = module.state_dict()
    drop, add = _prefixes(tensors, expected)
    if drop or add:
        count = sum(name.startswith(drop) for name in tensors)
        notes.append(f"{drop}* -> {add}*  ({count} tensors)")
    renamed = {add + name.removeprefix(drop) if name.startswith(drop) else name: t for name, t in tensors.items()}
    _check_normalization(path, renamed, expected)
    unused = [name for name in renamed if UNUSED in name and name not in expected]
    if unused:
        notes.append(f"{UNUSED}* skipped  ({len(unused)} tensors): no forward pass uses them")
    unexpected = [name for name in renamed if name not in (*expected, *unused) and not _may_differ(name)]
    missing = [name for name in expected if name not in renamed and not _may_differ(name)]
    if missing or unexpected:
        sides = [_first("missing", missing), _first("unexpected", unexpected)]
        raise CheckpointError(f"{path}: not the weights of this network: {' and '.join(filter(None, sides))}")
    matched = {name: tensor for name, tensor in renamed.items() if name in expected}
    for name, tensor in matched.items():
        here = expected[name]
        if tensor.shape != here.shape:
            shapes = f"{tuple(tensor.shape)}, here {tuple(here.shape)}"
            raise CheckpointError(f"{path}: not the weights of this network: {name} has shape {shapes}")
        if name.endswith(COUNTERS):  # it decides nothing, whatever the rest was cast to with it
            matched[name] = tensor = tensor.to(here.dtype)
        dense = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not dense or (tensor.is_floating_point(), tensor.is_complex()) != (here.is_floating_point(), False):
            raise CheckpointError(f"{path}: {name} is of {tensor.dtype}, {tensor.layout}, which cannot be copied")
    return matched


def _prefixes(names: Iterable[str], expected: Mapping[str, Any]) -> tuple[str, str]:
    """The prefix to drop from names and the one to put there, by which the most are `expected`; none where that is less
    than half, as of another network."""
    names = list(names)
    # "model.module." too: each begin that enough names have.
    begins = Counter(name[: dot.end()] for name in names for dot in re.finditer(r"\.", name))
    firsts = [begin for begin, count in begins.items() if 2 * count >= len(expected)]
    wrapped = dict.fromkeys(name.partition(".")[0] + "." for name in expected if "." in name)
    choices = [(drop, add) for drop in ("", *firsts) for add in ("", *wrapped)]
    counts = {
        (drop, add): sum(add + name.removeprefix(drop) in expected for name in names if name.startswith(drop))
        for drop, add in choices
    }
    best = max(choices, key=counts.__getitem__)
    return best if 2 * counts[best] >= len(expected) else ("", "")


def _check_normalization(path: Path, tensors: dict[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError where the file normalises its input otherwise than the network does. Takes its mean and
    std out of `tensors`, unless they are called as the network's."""
    found = {}
    for name in list(tensors):
        statistic = STATISTICS.get(name.rpartition(".")[2])
        if statistic is None or not 0 < tensors[name].numel() <= 16:
            continue
        if name == f"normalize.{statistic}" and name in expected:
            found[statistic] = tensors[name].flatten().tolist()
        elif name not in expected:
            found[statistic] = tensors.pop(name).flatten().tolist()
    for statistic, values in found.items():
        here = expected.get(f"normalize.{statistic}")
        text = {name: ",".join(f"{value:.6g}" for value in each) for name, each in found.items()}
        if here is None:
            options = " ".join(f"--{name} {each}" for name, each in text.items())
            raise CheckpointError(f"{path}: its network normalises its input: give {options}")
        mine = here.flatten().tolist()
        if len(mine) != len(values) or not all(abs(a - b) <= 1e-3 for a, b in zip(mine, values, strict=True)):
            given = ",".join(f"{value:.6g}" for value in mine)
            raise CheckpointError(f"{path}: its network was made with {statistic} {text[statistic]}, not {given}")


def _may_differ(name: str) -> bool:
    """Whether a tensor need not be in both: a counter, or the normalisation that the user gives."""
    return name.endswith(COUNTERS) or name in ("normalize.mean", "normalize.std")


def _first(what: str, names: list[str]) -> str:
    more = f" (first of {len(names)})" if len(names) > 1 else ""
    return f"{what} {names[0][:200]}{more}" if names else ""

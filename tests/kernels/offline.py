"""Compile every kernel for a GPU that is not here, and hold it to its budget of registers, spills and access widths.

    python tests/kernels/offline.py compile 90 build/kernels     cubins and resources-sm_90.json
    python tests/kernels/offline.py check build/kernels/resources-sm_90.json

A kernel is specialised as Triton's launcher would: its launch is recorded on CPU tensors of the sizes that are used,
and the types, the divisibility by 16 and the ones among its arguments are taken from there. Without the divisibility
Triton emits scalar loads, and nothing that is measured here would hold on a GPU.
"""

from __future__ import annotations

import bisect
import io
import itertools
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from elftools.elf.elffile import ELFFile
from fastgat.kernels.backend import forced_kernels, triton
from fastgat.kernels.convolution_relu import convolution_relu
from fastgat.kernels.dual_loss import perturbed_loss, sample_loss
from fastgat.kernels.image_batch import COLUMNS, image_batch
from fastgat.kernels.input_gradient import MODES, input_gradient
from fastgat.kernels.perturbation import perturbation, perturbation_gradient
from fastgat.kernels.projected_step import projected_step
from fastgat.kernels.relu_gradient import relu_gradient
from torch import Tensor

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BUDGETS = Path(__file__).with_name("budgets.toml")


class Case(NamedTuple):
    """A use of a kernel; `wide` where the layout allows 16-byte accesses."""

    name: str
    call: Callable[[], object]
    wide: bool = True


class Launch(NamedTuple):
    """A recorded launch: the kernel, its arguments by name, and the options of the compiler."""

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, Any]


def images(dtype: torch.dtype, side: int = 32, batch: int = 128, *, channels_last: bool = False) -> Tensor:
    tensor = torch.zeros(batch, 3, side, side, dtype=dtype)
    return tensor.contiguous(memory_format=torch.channels_last) if channels_last else tensor


def cases() -> Iterator[Case]:
    """Every kernel in the dtypes, modes and layouts that are used."""
    losses, labels = torch.zeros(128), torch.zeros(128, dtype=torch.int64)
    for short, dtype in DTYPES.items():
        x = images(dtype)
        for mode in MODES:
            yield Case(f"{mode}-{short}", partial(input_gradient, x, mode, loss=losses))
        yield Case(f"l2-{short}-512", partial(input_gradient, images(dtype, side=512, batch=4), "l2"))
        yield from _perturbations(short, x, x, losses)
        step = partial(projected_step, x, x, x, size=0.1)
        yield Case(f"ball-{short}", partial(step, epsilon=0.1))
        yield Case(f"box-{short}", partial(step, epsilon=None))
        yield Case(f"through-clamp-{short}", partial(step, epsilon=0.1, through_clamp=True))
        for classes, batch in ((10, 128), (1024, 128), (65_536, 4)):
            logits = torch.zeros(batch, classes, dtype=dtype)
            yield Case(f"clean-{short}-{classes}", partial(sample_loss, logits, labels), wide=classes > 10)
            perturbed = partial(perturbed_loss, logits, labels, losses, 0.5)
            yield Case(f"perturbed-{short}-{classes}", perturbed, wide=classes > 10)
        for channels, side in ((48, 32), (96, 16), (96, 8)):
            y = torch.zeros(128, side, side, channels, dtype=dtype).permute(0, 3, 1, 2)
            yield Case(f"{short}-{channels}x{side}", partial(relu_gradient, y, y))
            for stride, taps in ((1, 3), (2, 3), (1, 1)) if dtype != torch.float32 else ():
                w, b = torch.zeros(channels, channels, taps, taps, dtype=dtype), torch.zeros(channels, dtype=dtype)
                call = partial(convolution_relu, y, w, b, stride, taps // 2)
                yield Case(f"{short}-{channels}x{side}-taps{taps}-stride{stride}", call)
    yield from _perturbations("fp32-bf16", images(torch.float32), images(torch.bfloat16), losses)
    rows, table = torch.zeros(128, dtype=torch.int64), torch.zeros(128, COLUMNS, dtype=torch.int32)
    for channels_last in (False, True):
        pixels, suffix = images(torch.uint8, channels_last=channels_last), "-channels-last" if channels_last else ""
        yield Case(f"plain{suffix}", partial(image_batch, pixels, rows))
        # A mirrored row is read backwards, byte by byte.
        moved = partial(image_batch, pixels, rows, table, hole=8)
        yield Case(f"moved{suffix}", partial(moved, resize=False), wide=False)
        yield Case(f"resized{suffix}", moved, wide=False)
    # The smallest inputs: integers that are 1 become constants of the kernel, which have no `.to`.
    dot = torch.zeros(128, 3, 1, 1)
    for mode in MODES:
        yield Case(f"{mode}-dot", partial(input_gradient, dot, mode, loss=losses), wide=False)
    yield Case("tanh-dot", partial(perturbation, dot, dot, clamp=True), wide=False)
    yield Case("gradient-dot", partial(perturbation_gradient, dot, dot, dot, losses, clamp=True), wide=False)
    yield Case("ball-dot", partial(projected_step, dot, dot, dot, size=1, epsilon=1), wide=False)
    yield Case("perturbed-one-class", partial(perturbed_loss, dot[:, :1, 0, 0], labels, losses, 1), wide=False)
    yield Case("relu-dot", partial(relu_gradient, dot, dot), wide=False)
    yield Case("resized-dot", partial(image_batch, dot.to(torch.uint8), rows, table, hole=1), wide=False)


def _perturbations(dtypes: str, x: Tensor, z: Tensor, losses: Tensor) -> Iterator[Case]:
    for tanh, clamp in itertools.product((True, False), repeat=2):
        name = f"{'tanh' if tanh else 'plain'}-{dtypes}{'-clamped' if clamp else ''}"
        yield Case(name, partial(perturbation, x, z, tanh=tanh, clamp=clamp))
        gradient = partial(perturbation_gradient, x, z, x, losses, tanh=tanh, clamp=clamp)
        yield Case(f"{name}-gradient", gradient)
        yield Case(f"{name}-gradient-of-loss", partial(gradient, loss=losses))


def record(case: Case) -> Launch:
    """The launch of a case."""
    launches: list[Launch] = []

    def run(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        named = dict(zip(kernel.arg_names, arguments, strict=False))
        named |= {name: options.pop(name) for name in list(options) if name in kernel.arg_names}
        launches.append(Launch(kernel, named, options))

    with forced_kernels(), mock.patch.object(triton.runtime.jit.JITFunction, "run", run):
        case.call()
    (launch,) = launches
    return launch


def specialised(launch: Launch) -> Any:
    """The kernel's source as the launcher would compile it for these arguments."""
    signature: dict[str, str] = {}
    constants: dict[tuple[int], Any] = {}
    attributes: dict[tuple[int], list[list[Any]]] = {}
    for position, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        at = (position,)
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
            signature[parameter.name], constants[at] = "constexpr", value
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        elif isinstance(value, Tensor):
            signature[parameter.name] = "*" + _type_name(value.dtype)
            attributes[at] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0:
                attributes[at] = [["tt.divisibility", 16]]
    return triton.compiler.ASTSource(launch.kernel, signature, constants, attributes)


def _type_name(dtype: torch.dtype) -> str:
    whole = {torch.bool: "i1", torch.uint8: "u8", torch.int32: "i32", torch.int64: "i64"}
    return (whole | {dtype: short for short, dtype in DTYPES.items()})[dtype]


def compile_all(capability: int, folder: Path) -> Path:
    """Cubins of every case for sm_`capability`, and a report of their resources."""
    folder.mkdir(parents=True, exist_ok=True)
    target = triton.backends.compiler.GPUTarget("cuda", capability, 32)
    rows, kernels = [], []
    for case in cases():
        if capability < 80 and "bf16" in case.name:  # which has no such instructions; --amp takes float16 there
            continue
        launch = record(case)
        if capability < 80 and launch.kernel.__name__ == "_convolution_relu_kernel":  # which does not run there
            continue
        compiled = triton.compile(specialised(launch), target=target, options=launch.options)
        name = launch.kernel.__name__.strip("_").removesuffix("_kernel")
        (folder / f"{name}.{case.name}.sm_{capability}.cubin").write_bytes(compiled.asm["cubin"])
        rows.append({"kernel": name, "case": case.name, "wide": case.wide, "shared": compiled.metadata.shared})
        kernels.append(compiled)
    rows = [row | found for row, found in zip(rows, resources(kernels, capability), strict=True)]
    report = folder / f"resources-sm_{capability}.json"
    report.write_text(json.dumps({"capability": capability, "triton": triton.__version__, "rows": rows}, indent=1))
    return report


def resources(kernels: Sequence[Any], capability: int) -> list[dict[str, int | bool]]:
    """Of each compiled kernel registers, spills, float64 instructions and access widths in bytes, from the machine
    code."""
    found = []
    for compiled, code in zip(kernels, disassembled([each.asm["cubin"] for each in kernels], capability), strict=True):
        kinds = ("LDG(?:STS)?", "STG")  # LDGSTS: to shared memory, while something else is computed
        loads, stores = ([_width(suffix) for suffix in re.findall(rf"\b{kind}\.E(\S*)", code)] for kind in kinds)
        resources: dict[str, int | bool] = {
            "registers": registers(compiled.asm["cubin"]),
            "spills": len(re.findall(r"\b(?:LDL|STL)\b", code)),
            "fp64": len(re.findall(r"\b(?:DADD|DMUL|DFMA|DSETP|F2F\.F64\S*|F2F\.F32\.F64)\b", code)),
            "load": max(loads, default=0),
            "store": max(stores, default=0),
            # The offset of a sample: its number times its stride, multiplied in 64 bits.
            "wide_addresses": bool(re.search(r"arith\.muli .*: (?:tensor<\S*x)?i64", compiled.asm["ttir"])),
        }
        found.append(resources)
    return found


def registers(cubin: bytes) -> int:
    """Those of the kernel in a cubin."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(cubin)
        file.flush()
        (count,) = re.findall(r"REG:(\d+)", _told_by("cuobjdump", "--dump-resource-usage", file.name))
    return int(count)


def disassembled(cubins: Sequence[bytes], capability: int) -> list[str]:
    """The instructions of each cubin, by one nvdisasm for all of them: it takes half a second to start."""
    codes = []
    for cubin in cubins:
        sections = ELFFile(io.BytesIO(cubin)).iter_sections()
        codes.append(b"".join(section.data() for section in sections if section.name.startswith(".text.")))
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"".join(codes))
        file.flush()
        text = _told_by("nvdisasm", "--binary", f"SM{capability}", file.name)
    ends = list(itertools.accumulate(map(len, codes)))
    lines: list[list[str]] = [[] for _ in codes]
    for address, instruction in re.findall(r"/\*([0-9a-f]+)\*/(.*);", text):
        lines[bisect.bisect(ends, int(address, 16))].append(instruction)
    return ["\n".join(each) for each in lines]


def _told_by(tool: str, *arguments: str) -> str:
    """What one of the CUDA tools prints that come with Triton."""
    command = [str(Path(triton.__file__).parent / "backends/nvidia/bin" / tool), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _width(suffix: str) -> int:
    """Bytes of an access whose instruction ends in `suffix`, such as ".128.CONSTANT"."""
    for mark, size in (("256", 32), ("128", 16), ("64", 8), ("U16", 2), ("S16", 2), ("U8", 1), ("S8", 1)):
        if f".{mark}" in suffix:
            return size
    return 4


def failures(row: dict[str, Any], budget: dict[str, int]) -> list[str]:
    """What a compiled case does that its budget does not allow."""
    limits = (("registers", "registers"), ("shared", "bytes of shared memory"))
    problems = [f"{row[n]} {what}, budget {budget[n]}" for n, what in limits if row[n] > budget[n]]
    problems += [f"{row[n]} {n}, none allowed" for n in ("spills", "fp64") if row[n]]
    if row["wide"]:
        problems += [f"{n}s of {row[n]} bytes at most, not 16" for n in ("load", "store") if row[n] < 16]
    if not row["wide_addresses"]:
        problems.append("no 64-bit offsets")
    return problems


def check(report: Path) -> int:
    """Print the report as a table; the number of cases over budget."""
    content = json.loads(report.read_text())
    budgets = tomllib.loads(BUDGETS.read_text())
    print(f"sm_{content['capability']}, triton {content['triton']}")
    print(f"{'kernel':22} {'case':26} registers spills fp64 shared load store")
    bad = 0
    for row in content["rows"]:
        general = budgets[row["kernel"]]
        problems = failures(row, general | general.get(f"sm_{content['capability']}", {}))
        bad += bool(problems)
        used = "{registers:9} {spills:6} {fp64:4} {shared:6} {load:4} {store:5}".format(**row)
        print(f"{row['kernel']:22} {row['case']:26} {used}  {'; '.join(problems)}")
    return bad


def main(arguments: list[str]) -> int:
    match arguments:
        case ["compile", capability, folder] if capability.isdigit():
            compile_all(int(capability), Path(folder))
            return 0
        case ["check", report]:
            return 1 if check(Path(report)) else 0
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

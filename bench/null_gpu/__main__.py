"""A GPU that computes nothing: what a machine without one can see of a step but its values and its time.

    python -m bench.null_gpu bench/launches.py
    python -m bench.null_gpu -m pytest -m gpu tests/engine --tb=line

What torch and Triton ask of CUDA's runtime, its driver and cuBLAS is answered by stubs: memory is the host's, copies
copy, kernels are compiled for an H100, loaded and launched, and do nothing. Dynamo, Inductor, Triton, the capture of a
graph and its replay run as they would on a GPU, and most of what ends in an error there does here. Every value is
nonsense, so a test that compares values fails; one that fails otherwise is worth a look. It wants a build of torch for
CUDA, a C compiler and `nm`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CALLS = {"runtime.c": r"cuda[A-Z]\w*|cublas(?:Lt)?[A-Z]\w*", "driver.c": r"cu[A-Z]\w*"}
ALWAYS = {"cuGetProcAddress_v2", "cuLaunchKernelEx"}
"""What is looked up by name while running."""


def package(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        sys.exit(f"null_gpu: {name} is not installed")
    return Path(spec.origin).parent


def asked_for(pattern: str, libraries: Iterable[Path], sources: Iterable[Path]) -> set[str]:
    """The functions that these libraries leave undefined, and these sources mention."""
    found = set(ALWAYS)
    for library in libraries:
        symbols = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True)
        found.update(re.findall(rf"\bU ({pattern})\b", symbols.stdout))
    for source in sources:
        found.update(re.findall(rf"\b({pattern})\b", source.read_text()))
    return {name for name in found if re.fullmatch(pattern, name)}


def build(folder: Path) -> None:
    """libruntime.so, to be loaded before CUDA's own, and libcuda.so.1."""
    torch, nvidia = package("torch") / "lib", package("triton") / "backends" / "nvidia"
    if not (torch / "libtorch_cuda.so").exists():
        sys.exit("null_gpu: this torch is a build without CUDA")
    # The runtime's as they came with torch: its structures are other ones in every major version of CUDA.
    headers = [*torch.parents[1].glob("nvidia/cu*/include"), nvidia / "include"]
    runtime = [torch / f"lib{name}.so" for name in ("c10_cuda", "torch_cuda", "torch_python", "torch_cpu")]
    wanted = {
        "runtime.c": asked_for(CALLS["runtime.c"], runtime, []),
        "driver.c": asked_for(CALLS["driver.c"], [torch / "libcaffe2_nvrtc.so"], [nvidia / "driver.c"]),
    }
    for source, output in (("runtime.c", "libruntime.so"), ("driver.c", "libcuda.so.1")):
        answered = set(re.findall(r"^\w+ \*?(\w+)\(", (HERE / source).read_text(), re.MULTILINE))
        rest = folder / f"rest_of_{source}"
        rest.write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in sorted(wanted[source] - answered)))
        options = ["-shared", "-fPIC", "-w", *(f"-I{path}" for path in headers), f"-Wl,-soname,{output}"]
        compiler = os.environ.get("CC", "cc")
        subprocess.run([compiler, *options, "-o", folder / output, HERE / source, rest], check=True)
    (folder / "libcuda.so").symlink_to("libcuda.so.1")


def main() -> int:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory(prefix="null-gpu-") as name:
        folder = Path(name)
        build(folder)
        path = os.pathsep.join([str(HERE), str(ROOT), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
        environment = {
            **os.environ,
            "LD_PRELOAD": str(folder / "libruntime.so"),
            "LD_LIBRARY_PATH": f"{name}:{os.environ.get('LD_LIBRARY_PATH', '')}".rstrip(":"),
            "TRITON_LIBCUDA_PATH": name,
            "TRITON_CACHE_DIR": str(folder / "triton"),
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
            "PYTHONPATH": path,
        }
        return subprocess.run([sys.executable, *sys.argv[1:]], env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())

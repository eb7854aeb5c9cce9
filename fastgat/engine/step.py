"""The training step, and how it runs: uncompiled, compiled into one graph, or replayed as one CUDA graph."""

import functools
import os
import re
import shutil
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from fastgat.batch import Batch
from fastgat.config import RunConfig
from fastgat.engine.device import fastest_convolutions
from fastgat.engine.ranks import ALONE, Ranks, is_of_connection
from fastgat.engine.state import TrainState, unchanged
from fastgat.engine.trial import check_second_derivatives_compile
from fastgat.errors import CaptureError, CompileError, FastgatError, is_out_of_memory
from fastgat.methods.base import Method
from fastgat.methods.players import Draws

Inputs = tuple[Sequence[Batch], Sequence[Draws]]
Step = Callable[[Sequence[Batch], Sequence[Draws]], None]
OVERLAP: dict[str, Any] = {
    "reorder_for_compute_comm_overlap": True,
    "reorder_for_compute_comm_overlap_passes": ["raise_comms", "sink_waits"],
}
"""Inductor's options for several ranks: begin to communicate as early, and wait for it as late, as can be."""
GPU_OPTIONS: dict[str, Any] = {} if torch.__version__ >= "2.13" else {"loop_ordering_after_fusion": False}
"""Inductor's options on a GPU. Before torch 2.13 its reordering of loops fails on an update of many tensors at once."""
BACKEND = re.compile(r"\s*backend='.*' raised:$")  # the line that torch puts before the cause
WARM_UPS = 3  # runs before a capture, for what allocates or tunes itself at first use
DEFAULT = RunConfig()


def train_step(state: TrainState, method: Method, kind: str, batches: Sequence[Batch], draws: Sequence[Draws]) -> None:
    """One step of `method`, in place: everything that changes is in `state`, and nothing waits for the device.

    It is called where torch records no gradients.
    """
    before = state.snapshot()
    players, metrics = method.step(state.players(), batches, draws, state.update, kind)
    state.write_buffers(players)
    state.finish(metrics, before)


class Stepper:
    """Takes the steps of a method on a state.

    Args:
        run: how a compiled step computes convolutions, and whether a GPU replays it as one CUDA graph.
        compiled: compile the step; `prepare` does it.
    """

    def __init__(self, state: TrainState, method: Method, run: RunConfig = DEFAULT, *, compiled: bool = False) -> None:
        self.state, self.method, self.run = state, method, run
        self.compiled = compiled
        self.captured = compiled and run.cuda_graph and state.device.type == "cuda"
        self._steps: dict[str, Step] = {kind: self._uncompiled(kind) for kind in method.kinds}

    @torch.no_grad()
    def __call__(self, batches: Sequence[Batch], draws: Sequence[Draws], kind: str = "full") -> None:
        """One step; `batches` and `draws` as `Method.step` takes them, of the shapes that `prepare` was given.

        Raises CompileError where it would have to be compiled time and again.
        """
        try:
            self._steps[kind](batches, draws)
        except torch._dynamo.exc.FailOnRecompileLimitHit as error:
            raise CompileError(
                "the step would have to be compiled time and again: an attribute of a network changes from step to "
                "step, which only the uncompiled step follows (--no-compile, compile=False)"
            ) from error
        torch.clear_autocast_cache()  # of casts of the weights of before: see mixed_precision

    @torch.no_grad()
    def prepare(self, batches: Sequence[Batch], draws: Sequence[Draws]) -> None:
        """Compile every kind of step, and capture it, on inputs like those to come. The state stays as it is.

        Raises CompileError or CaptureError, naming the cause, where that is impossible.
        """
        if not self.compiled:
            return
        with unchanged(self.state):
            if self.method.differentiates_twice:
                check_second_derivatives_compile(self.state.classifier, batches[-1].images)
            # Not torch's own, which is on the device of the process's first capture; one for all that share the pool.
            stream, pool = torch.cuda.Stream(self.state.device) if self.captured else None, None
            for kind in self.method.kinds:
                count = self.method.minibatches(kind)
                taken = batches[-count:], draws[-count:]
                device, ranks = self.state.device, self.state.ranks
                step = compile_and_capture(self._uncompiled(kind), taken, device, self.run, ranks, stream, pool)
                pool = step.graph.pool() if isinstance(step, Captured) else None
                self._steps[kind] = step

    def release(self) -> None:
        """Take no more steps: captured graphs go now, since NCCL waits for those that use its group before it ends."""
        for step in self._steps.values():
            if isinstance(step, Captured):
                step.graph.reset()
        self._steps = {}

    def give_up_compiling(self) -> None:
        """Take the steps uncompiled from here on."""
        self.compiled = self.captured = False
        self._steps = {kind: self._uncompiled(kind) for kind in self.method.kinds}

    def _uncompiled(self, kind: str) -> Step:
        return functools.partial(train_step, self.state, self.method, kind)


def as_one_graph(step: Step, device: torch.device, run: RunConfig = DEFAULT, ranks: Ranks = ALONE) -> Step:
    """`step` as one graph, compiled for `device` at its first call; a break in the graph is an error."""
    from fastgat.engine.graph_passes import GraphPasses  # imports Inductor, which takes seconds

    assert isinstance(step, functools.partial)
    # A copy: torch.compile keeps what it compiles by code object, up to a limit.
    function = types.FunctionType(step.func.__code__.replace(), step.func.__globals__, step.func.__name__)
    options = {
        "post_grad_custom_pre_pass": GraphPasses(run.convolutions if device.type == "cuda" else "cudnn", run.winograd),
        **(GPU_OPTIONS if device.type == "cuda" else {}),
        **({} if ranks.alone else OVERLAP),
    }
    return functools.partial(torch.compile(function, fullgraph=True, dynamic=False, options=options), *step.args)


def compile_and_capture(
    step: Step,
    inputs: Inputs,
    device: torch.device,
    run: RunConfig = DEFAULT,
    ranks: Ranks = ALONE,
    stream: torch.cuda.Stream | None = None,
    pool: Any = None,
) -> Step:
    """Compile `step` by taking it on inputs like those to come; where a stream is given, also capture it there.

    Raises CompileError or CaptureError, naming the cause, where that is impossible.
    """
    inputs = tree_map_only(Tensor, torch.clone, inputs)  # clone: captured inputs must not alias
    compiled = as_one_graph(step, device, run, ranks)
    with fastest_convolutions():
        with compile_errors_in_one_line(CompileError, "the step cannot be compiled: {}"), warnings.catch_warnings():
            # Whether they are wanted is a setting of ours.
            warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)
            compiled(*inputs)
        if stream is None:
            return compiled
        with compile_errors_in_one_line(
            CaptureError, "the step cannot be captured as a CUDA graph (--no-cuda-graph): {}"
        ):
            return Captured(compiled, inputs, stream, pool)


class Captured:
    """A step as one CUDA graph: inputs are copied to the `inputs` that it was given, and its launches replayed.

    The host neither runs Python between the launches nor waits for any of them.

    Args:
        stream: of the step's device, to warm up and to capture on.
    """

    def __init__(self, step: Step, inputs: Inputs, stream: torch.cuda.Stream, pool: Any = None) -> None:
        self.inputs = inputs
        self._fixed = tree_leaves(inputs)
        here = torch.cuda.current_stream()
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                step(*self.inputs)
        here.wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        cause: BaseException | None = None
        try:
            # Other threads, such as a loader's that pins memory, may go on meanwhile.
            with torch.cuda.graph(self.graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                try:
                    step(*self.inputs)
                except BaseException as error:
                    cause = error
                    raise
        except RuntimeError as error:
            end_failed_capture(stream)
            raise cause or error from None  # the end of a capture fails after its cause
        finally:
            torch.cuda.set_stream(here)  # a capture that fails leaves its own stream behind

    def __call__(self, batches: Sequence[Batch], draws: Sequence[Draws]) -> None:
        for fixed, fresh in zip(self._fixed, tree_leaves((batches, draws)), strict=True):
            if fixed is not None:
                fixed.copy_(fresh)
        self.graph.replay()


def end_failed_capture(stream: torch.cuda.Stream) -> None:
    """A failed capture leaves the CUDA generator in capture mode; an empty second capture resets it."""
    with suppress(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph(), stream=stream):
        torch.rand(1, device=stream.device)


def missing_compiler(device: torch.device) -> str | None:
    """The compiler that this machine lacks for `device`, in words; None where it has one."""
    if device.type == "cuda":
        language, chosen, known = "C", os.environ.get("CC"), ("gcc", "clang", "cc")
    else:
        language, chosen, known = "C++", os.environ.get("CXX"), ("g++", "clang++", "c++")
    if chosen:
        return None if shutil.which(chosen) else f"a {language} compiler: {chosen!r} is not one that can be run"
    return None if any(map(shutil.which, known)) else f"a {language} compiler, such as {known[0]} or {known[1]}"


@contextmanager
def compile_errors_in_one_line(kind: type[CompileError], message: str) -> Iterator[None]:
    """Turn what torch raises into one line, without its advice; out of memory and lost ranks stay what they are."""
    try:
        yield
    except Exception as error:  # Dynamo also raises what the code of a network does when it is traced
        torch._C._autograd._saved_tensors_hooks_enable()  # a trace of torch.func.vjp that fails leaves them disabled
        if isinstance(error, FastgatError) or is_out_of_memory(error) or is_of_connection(error):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip() and not BACKEND.match(line)]
        raise kind(message.format(lines[0] if lines else type(error).__name__)) from error

"""How much a step computes, moves and launches, and how fast the hardware can do that at best."""

import collections
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._C._autograd import DeviceType
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from fastgat.engine.step import train_step
from fastgat.profiling.sides import Fastgat, Side, synchronize

REPEATS = 5  # how often the best rate is looked for


class Counter(TorchDispatchMode):
    """Adds up what convolutions and matrix products compute, and what they read and write, each operand once."""

    def __init__(self) -> None:
        super().__init__()
        self.flops, self.bytes = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.add(func, args, kwargs or {}, out)
        return out

    def add(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """One call of an operator."""
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.flops += int(count(*args, **kwargs, out_val=out))
            self.bytes += sum(leaf.nbytes for leaf in tree_leaves((args, out)) if isinstance(leaf, Tensor))


def work(side: Side) -> dict[str, int]:
    """FLOPs of a step (a multiply-add is two), and the bytes that its convolutions and matrix products must move.

    Elementwise work is left out: it can be fused into these. So both are lower bounds, for a step whose layers each
    read and write device memory once. Of a method with several kinds of steps, the mean over its period.
    """
    kinds = [side.method.kind(step) for step in range(side.method.period)]
    amounts = {each: work_of_kind(side, each) for each in dict.fromkeys(kinds)}
    return {name: round(sum(amounts[each][name] for each in kinds) / len(kinds)) for name in ("flops", "bytes")}


def work_of_kind(side: Side, kind: str) -> dict[str, int]:
    """FLOPs and bytes of one kind of a side's steps."""
    counter = Counter()
    if not isinstance(side, Fastgat):
        with counter:
            side.step()
    elif side.stepper.compiled:  # its graph leaves out what is written and not needed
        _add_graph(counter, side, kind)
    else:
        batches, draws = side.next_inputs()
        with counter, torch.no_grad():
            train_step(side.state, side.method, kind, batches, draws)
    return {"flops": counter.flops, "bytes": counter.bytes}


def _add_graph(counter: Counter, side: Fastgat, kind: str) -> None:
    """Add what is in the graph of the step after the passes that change how much it computes."""
    from torch._dynamo.backends.common import aot_autograd  # slow
    from torch._functorch._aot_autograd.utils import make_boxed_func

    from fastgat.engine.graph import drop_unused_gradients, restore_weight_gradients

    def value(node: Node) -> Any:
        return node.meta.get("val")

    def add(module: GraphModule, inputs: Sequence[Tensor]) -> Any:
        drop_unused_gradients(module.graph)
        restore_weight_gradients(module.graph)
        module.recompile()
        for node in module.graph.nodes:
            if isinstance(node.target, torch._ops.OpOverload):
                counter.add(node.target, *map_arg((node.args, node.kwargs), value), value(node))
        return make_boxed_func(module)

    batches, draws = side.next_inputs()
    traced = torch.compile(train_step, fullgraph=True, dynamic=False, backend=aot_autograd(fw_compiler=add))
    with torch.no_grad():
        traced(side.state, side.method, kind, batches, draws)


def launches(side: Side) -> dict[str, Any] | None:
    """What a step launches on a GPU, and how long each kernel runs; None on a CPU.

    `kernels` of a step, the `launches` by which the host starts them (a whole CUDA graph is one), and `by_kernel`, the
    slowest first: `name`, `calls` in a step, `us` in all of them.
    """
    if side.device.type != "cuda":
        return None
    steps = 5 * side.method.period
    with torch.profiler.profile(activities=list(torch.profiler.supported_activities()), acc_events=True) as recorded:
        for _ in range(steps):
            side.step()
        synchronize(side.device)
    return summarised(recorded.events() or [], steps)


def summarised(events: Sequence[Any], steps: int) -> dict[str, Any]:
    """The figures of `launches` from the profiler's events of so many steps."""
    kernels = [
        event
        for event in events
        if event.device_type == DeviceType.CUDA
        and not event.name.startswith(("Memcpy", "Memset"))
        and not getattr(event, "is_user_annotation", False)
    ]
    calls = [event for event in events if event.name.startswith(("cudaLaunch", "cuLaunch", "cudaGraphLaunch"))]
    times: dict[str, list[float]] = collections.defaultdict(list)
    for event in kernels:
        times[event.name].append(event.device_time)
    slowest = sorted(times.items(), key=lambda item: sum(item[1]), reverse=True)
    by_kernel = [{"name": name, "calls": len(us) / steps, "us": sum(us) / steps} for name, us in slowest]
    return {"kernels": len(kernels) / steps, "launches": len(calls) / steps, "by_kernel": by_kernel}


def ceilings(side: Side) -> dict[str, float]:
    """The best rates of `side`'s device: FLOP/s in `side`'s precision, bytes/s of a copy.

    The first is that of a square matrix product or of a large convolution, whichever is faster: on a CPU they come
    from different libraries, and either may be far below what the other shows to be possible.
    """
    on_gpu = side.device.type == "cuda"
    dtype = side.autocast or torch.float32
    products = []
    for size in (4096, 8192) if on_gpu else (1024, 2048):
        a, b = (torch.randn(size, size, device=side.device).to(dtype) for _ in range(2))
        products.append(2 * size**3 / _best(side, partial(torch.matmul, a, b)))
    layout, channels = torch.channels_last, 256 if on_gpu else 64
    shapes = (64, channels, 32, 32), (channels, channels, 3, 3)
    x, w = (torch.randn(shape, device=side.device).to(dtype) for shape in shapes)
    x, w = (tensor.contiguous(memory_format=layout) for tensor in (x, w))
    flops = 2 * x.numel() * channels * 9
    products.append(flops / _best(side, partial(functional.conv2d, x, w, padding=1)))
    source = torch.randn(2**28 if on_gpu else 2**25, device=side.device)
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / _best(side, partial(target.copy_, source))
    return {"flops_per_second": max(products), "bytes_per_second": copied}


def _best(side: Side, operation: Callable[[], object]) -> float:
    """Seconds of the fastest of several calls, after a warm-up."""
    return min([side.seconds(operation) for _ in range(REPEATS + 1)][1:])

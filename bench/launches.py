"""What a compiled step launches on a GPU, by kind, from the code that Inductor writes for it.

    python bench/launches.py --batch-size 128
    python -m bench.null_gpu bench/launches.py             where there is no GPU

A convolution's backward pass is one call, and two kernels or more of cuDNN; all others are one kernel each.
"""

from __future__ import annotations

import collections
import contextlib
import re
from collections.abc import Iterator
from unittest import mock

import click
import torch
from torch._inductor.utils import run_and_get_code

from fastgat.config import CONVOLUTIONS, PrecisionConfig, RunConfig, TrainConfig
from fastgat.engine import assemble, convolutions
from fastgat.methods import METHODS, create_method
from fastgat.profiling.sides import Spec, build

CALL = re.compile(r"^[^#]*?(?:(\w+)\.run\(|(extern_kernels\.\w+|torch\.ops\.(?:aten|fastgat)\.\w+))")


# What the null GPU's values could not tell: Table 1's networks fit, and their samples do not interact; a ReLU's zero,
# which Inductor folds into a constant that it reads from the device, is one.
TAKEN_AS_GIVEN = (
    (assemble, "check_networks", 10),
    (assemble, "samples_interact", False),
    (assemble, "try_step", None),
    (convolutions, "_is_zero", True),
)


@contextlib.contextmanager
def taken_as_given() -> Iterator[None]:
    """Let the functions of `TAKEN_AS_GIVEN` return what is said there."""
    with contextlib.ExitStack() as stack:
        for module, name, value in TAKEN_AS_GIVEN:
            stack.enter_context(mock.patch.object(module, name, return_value=value))
        yield


@click.command()
@click.option("--method", type=click.Choice(sorted(METHODS)), default="gat", show_default=True)
@click.option("--delta", type=click.Choice(["through", "fixed"]), default="through", show_default=True, help="of GAT")
@click.option("--batch-size", type=int, default=128, show_default=True)
@click.option("--amp/--no-amp", default=True, help="bfloat16", show_default=True)
@click.option("--channels-last/--no-channels-last", default=True, show_default=True)
@click.option("--convolutions", "ways", type=click.Choice(CONVOLUTIONS), default="cudnn", show_default=True)
def main(method: str, delta: str, batch_size: int, amp: bool, channels_last: bool, ways: str) -> None:
    """Count the launches of one step by kind."""
    if not torch.cuda.is_available():
        raise click.ClickException("there is no GPU here: python -m bench.null_gpu bench/launches.py")
    precision = PrecisionConfig(amp=amp, channels_last=channels_last)
    run = RunConfig(device="cuda", cuda_graph=False, convolutions=ways)
    options = {"delta": delta} if "delta" in METHODS[method].__dataclass_fields__ else {}
    config = TrainConfig(method=create_method(method, **options), batch_size=batch_size, precision=precision, run=run)
    with taken_as_given():
        _, codes = run_and_get_code(build, Spec("fastgat", config))
    counts: collections.Counter[str] = collections.Counter()
    for line in codes[0][codes[0].index("def call(") :].splitlines():
        if "assert_" not in line and (call := CALL.match(line)):
            counts[re.sub(r"_\d+$", "", call[1] or call[2])] += 1
    for kind, count in counts.most_common():
        click.echo(f"{count:4} {kind}")
    click.echo(f"{sum(counts.values()):4} in all")


if __name__ == "__main__":
    main()

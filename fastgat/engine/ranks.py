"""The processes that train together, one a device: torchrun starts them, torch.distributed connects them.

What a step computes together is in `fastgat.engine.reduction`; here is what the hosts say to each other. Each method of
Ranks is called by every rank, in the same order.
"""

import importlib
import itertools
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from fastgat.errors import ConfigError, FastgatError, RankError, first_line
from fastgat.processes import launched, number

Result = TypeVar("Result")
NCCL_ERROR_MARKER = "Last error:"  # the line that torch puts before NCCL's own words
_joins = itertools.count()
_store: Store | None = None


@dataclass
class Ranks:
    """This process as `rank` of `count`; a process alone is rank 0 of 1, and talks to nobody.

    Attributes:
        group: torch's name of the group, for collectives within a step.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    group: str = ""
    _votes: list[tuple[Tensor, Any]] = field(default_factory=list, repr=False)

    @property
    def alone(self) -> bool:
        return self.count == 1

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes and reports."""
        return self.rank == 0

    def part(self, samples: int) -> slice:
        """This rank's part of a batch of `samples` over all ranks."""
        mine = samples // self.count
        return slice(self.rank * mine, (self.rank + 1) * mine)

    def share_of(self, batch_size: int) -> int:
        """Samples of a batch that this rank has; raises ConfigError where ranks would have different ones."""
        if batch_size % self.count:
            raise ConfigError(
                f"batch_size {batch_size} counts over all ranks: it must be a multiple of the {self.count}"
            )
        return batch_size // self.count

    def gather(self, value: Result) -> list[Result]:
        """The value of every rank, in their order."""
        if self.alone:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def agree(self, work: Callable[[], Result]) -> Result:
        """The result of `work`, done on every rank; where it fails on any, all raise the first one's error."""
        if self.alone:
            return work()
        result, error = _attempt(work)
        errors = self.gather(error)
        failed = {rank: each for rank, each in enumerate(errors) if each is not None}
        if failed:
            rank, first = next(iter(failed.items()))
            raise first if len(failed) == self.count else type(first)(f"rank {rank}: {first}")
        return result  # type: ignore[return-value]  # there is one where there is no error

    def from_first(self, work: Callable[[], Result]) -> Result:
        """The result of `work`, done on rank 0 alone; every rank raises what it raises."""
        if self.alone:
            return work()
        sent: list[Any] = [_attempt(work) if self.first else None]
        dist.broadcast_object_list(sent, src=0)
        result, error = sent[0]
        if error is not None:
            raise error
        return result

    def local_first(self, work: Callable[[], Result]) -> Result:
        """Like `agree`, but the first rank of each machine is done before the others begin: it may fetch files."""
        if self.alone:
            return work()
        mine = self.agree(lambda: work() if self.local_rank == 0 else None)
        rest = self.agree(lambda: work() if self.local_rank else None)
        return mine if self.local_rank == 0 else rest  # type: ignore[return-value]

    def vote(self, number: int) -> int:
        """The maximum over the ranks of what they voted in the previous call; with one rank, `number` itself.

        No rank waits for another: votes are exchanged while the step between two calls runs.
        """
        if self.alone:
            return number
        ballot = torch.tensor(number)
        self._votes.append((ballot, dist.all_reduce(ballot, dist.ReduceOp.MAX, async_op=True)))
        return self._count_votes(1)

    def end_votes(self) -> None:
        """Receive the votes that are still under way, before a run ends."""
        self._count_votes(0)

    def check_same(self, what: Mapping[str, Any]) -> None:
        """Raises RankError, naming the first difference, unless every rank says the same."""
        first, *others = self.gather(dict(what))
        for rank, other in enumerate(others, 1):
            for key in first | other:
                if first.get(key) != other.get(key):
                    raise RankError(f"ranks differ in {key}: 0 has {first.get(key)}, {rank} has {other.get(key)}")

    def broadcast(self, tensors: list[Tensor]) -> None:
        """Overwrite these tensors with rank 0's, in place."""
        if not self.alone:
            for tensor in tensors:
                sent = tensor.detach().contiguous()
                dist.broadcast(sent, src=0)
                tensor.detach().copy_(sent)

    def _count_votes(self, left: int) -> int:
        heard = 0
        while len(self._votes) > left:
            ballot, under_way = self._votes.pop(0)
            under_way.wait()
            heard = max(heard, int(ballot))
        return heard


ALONE = Ranks()


def current() -> Ranks:
    """The ranks that are connected in this process."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return ALONE
    group = dist.group.WORLD
    assert group is not None
    return Ranks(dist.get_rank(), dist.get_world_size(), number("LOCAL_RANK", dist.get_rank()), group.group_name)


@contextmanager
def connected(device: torch.device) -> Iterator[Ranks]:
    """Connect the ranks that torchrun has started: NCCL between GPUs, gloo between CPUs; ALONE where there is one.

    A group that the caller has connected already is used, and left as it is. Raises RankError where the ranks do not
    find each other, and, within, in place of what torch raises when another rank has gone or cannot be talked to.
    """
    connects = launched() and not dist.is_initialized()
    if connects:
        _connect(device)
    elif dist.is_initialized() and "cpu" not in dist.get_backend_config():
        raise RankError("the process group does not connect CPUs: init_process_group('cpu:gloo,cuda:nccl') does both")
    ranks = current()
    try:
        yield ranks
    except RuntimeError as error:
        lost = None if ranks.alone else connection_error(error)
        if lost is None:
            raise
        raise lost from None
    if connects:
        # Not after an error: ranks without one are still running, and NCCL would wait for them.
        dist.destroy_process_group()


def _connect(device: torch.device) -> None:
    """Make the process group of the ranks that torchrun has started."""
    global _store
    # torch.func.vjp imports Dynamo at its first use. Imported while there is a group, Dynamo keeps it (torch 2.13), and
    # the group's threads, still there when the interpreter ends, may abort the process.
    importlib.import_module("torch._dynamo")
    try:
        store, rank, count = next(iter(rendezvous("env://")))
        _store = PrefixStore(f"fastgat/{_attempt_number()}/{next(_joins)}", store)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=_store, rank=rank, world_size=count)
    except (RuntimeError, ValueError) as error:
        raise RankError(f"the ranks cannot be connected: {first_line(error)}") from None


def claim_error_line(message: str, *, lost: bool = False) -> str | None:
    """The line in which this rank reports an error; None where another rank has reported it.

    Ranks with the same message report it once. A rank that has merely `lost` another reports only where no rank has
    reported anything. Before ranks are connected each reports for itself: torchrun ends the rest when one ends.
    """
    if not launched():
        return message
    if _store is None:
        return f"rank {number('RANK', 0)}: {message}"
    with suppress(RuntimeError):  # the store went with the rank that held it
        told = _store.add("fastgat/errors", 1)
        if (told if lost else _store.add(f"fastgat/error/{message}", 1)) > 1:
            return None
    return message


def check_restarts(output: object) -> None:
    """Raises ConfigError where torchrun may restart a run that would not find its checkpoint."""
    if launched() and output is None and number("TORCHELASTIC_MAX_RESTARTS", 0) > 0:
        raise ConfigError("--max-restarts needs --output, where the restarted run finds its checkpoint")


def connection_error(error: BaseException, remark: str = "") -> RankError | None:
    """The error of one line for an error of the connection between ranks; None for other errors.

    From here on this rank ignores SIGTERM, by which torchrun ends the rest: it is to say this first.
    """
    if not is_of_connection(error):
        return None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    first = lines.index(NCCL_ERROR_MARKER) + 1 if NCCL_ERROR_MARKER in lines[:-1] else 0
    return RankError(f"another rank has gone, or cannot be reached ({lines[first]}){remark}", lost=True)


def is_of_connection(error: BaseException) -> bool:
    """Whether an error is of the connection between ranks: gloo and NCCL raise plain RuntimeErrors too."""
    if isinstance(error, FastgatError):
        return False
    return isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo/", "NCCL"))


def _attempt_number() -> int:
    """The number of torchrun's attempt, 0 where that is unsure: its store may still hold addresses of the last one.

    Each node counts its own restarts, so that the counts of several may differ.
    """
    return number("TORCHELASTIC_RESTART_COUNT", 0) if number("GROUP_WORLD_SIZE", 1) == 1 else 0


def _attempt(work: Callable[[], Result]) -> tuple[Result | None, FastgatError | None]:
    """The result of `work`, or its FastgatError, to be sent; any other error ends this rank alone."""
    try:
        return work(), None
    except FastgatError as error:
        return None, error

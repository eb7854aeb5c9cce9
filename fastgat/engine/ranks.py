"""The processes that train together, one a device: torchrun starts them, torch.distributed connects them.

What a step computes together is in `fastgat.engine.reduction`; here is what the hosts say to each other. Each method of
Ranks is called by every rank, in the same order.
"""

from __future__ import annotations

import importlib
import itertools
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from fastgat.errors import ConfigError, FastgatError, RankError
from fastgat.processes import is_first, launched, number

Result = TypeVar("Result")
PATIENCE_SECONDS = 2.0
"""How long a rank that has lost another waits for that one's own account of what happened."""
SILENCE_SECONDS = 10.0
"""How long a rank stays that leaves it to rank 0 to say what is wrong, which may still be starting."""
GONE = re.compile(
    r"connection (was likely )?(closed|reset|refused|abort)|broken pipe|remote p(eer|rocess)|timed? ?out|unreachable"
    r"|no route to host",
    re.IGNORECASE,
)
"""What gloo, NCCL and torch's store say of a rank that answers no more; other failures are this rank's own."""
NCCLS = "Last error:"
"""The line that torch puts before NCCL's own words."""
_joins = itertools.count()
_store: Store | None = None


@dataclass
class Ranks:
    """This process, `rank` of `count`; a process alone is rank 0 of 1, and all that is said here stays within it.

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
        """`work` done on every rank; where it fails on any, the first one's error is raised on all."""
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
        """What `work` returns or raises on rank 0, on all of them; the others do not do it."""
        if self.alone:
            return work()
        said: list[Any] = [_attempt(work) if self.first else None]
        dist.broadcast_object_list(said, src=0)
        result, error = said[0]
        if error is not None:
            raise error
        return result

    def local_first(self, work: Callable[[], Result]) -> Result:
        """As `agree`, but the first rank of each machine is done before the others begin: it may fetch files."""
        if self.alone:
            return work()
        mine = self.agree(lambda: work() if self.local_rank == 0 else None)
        rest = self.agree(lambda: work() if self.local_rank else None)
        return mine if self.local_rank == 0 else rest  # type: ignore[return-value]

    def vote(self, number: int) -> int:
        """The largest number that a rank has voted for, one vote late, so that no rank waits for another: votes are
        exchanged while the step between two of them runs. A rank alone hears its own at once."""
        if self.alone:
            return number
        ballot = torch.tensor(number)
        self._votes.append((ballot, dist.all_reduce(ballot, dist.ReduceOp.MAX, async_op=True)))
        return self._count_votes(1)

    def end_votes(self) -> None:
        """Hear what is still on its way; nothing may be left when a run ends."""
        self._count_votes(0)

    def check_same(self, what: Mapping[str, Any]) -> None:
        """Raises RankError, naming the first difference, unless every rank says the same."""
        said = self.gather(dict(what))
        for rank, other in enumerate(said):
            for key in said[0] | other:
                if said[0].get(key) != other.get(key):
                    raise RankError(f"ranks differ in {key}: 0 has {said[0].get(key)}, {rank} has {other.get(key)}")

    def broadcast(self, tensors: list[Tensor]) -> None:
        """Make these rank 0's, in place."""
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
def joined(device: torch.device) -> Iterator[Ranks]:
    """Connect the ranks that torchrun has started: NCCL between GPUs, gloo between CPUs; ALONE where there is one.

    A group that the caller has connected already is used, and left as it is. Raises RankError where the ranks do not
    find each other, and, within, in place of what torch raises when another rank has gone or cannot be talked to.
    """
    global _store
    if not launched() or dist.is_initialized():
        if dist.is_initialized() and "cpu" not in dist.get_backend_config():
            raise RankError(
                "the process group does not connect CPUs: init_process_group('cpu:gloo,cuda:nccl') does both"
            )
        with _one_line(current()):
            yield current()
        return
    # torch.func.vjp imports Dynamo at its first use. Imported while there is a group, Dynamo keeps it (torch 2.13), and
    # the group's threads, still there when the interpreter ends, may abort the process.
    importlib.import_module("torch._dynamo")
    try:
        store, rank, count = next(iter(rendezvous("env://")))
        _store = PrefixStore(f"fastgat/{_attemptnumber()}/{next(_joins)}", store)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=_store, rank=rank, world_size=count)
    except (RuntimeError, ValueError) as error:
        raise RankError(f"the ranks cannot be connected: {str(error).splitlines()[0]}") from None
    with _one_line(current()):
        yield current()
    dist.destroy_process_group()  # not after an error, which may not be that of all: NCCL would wait for the others


def speaks(message: str, *, lost: bool = False, usage: bool = False) -> bool:
    """Whether this rank is the one to tell people about an error, so that they are told once.

    Of ranks with the same message it is the first; one that has only lost another speaks where no one has said why.
    Before ranks are connected only errors of `usage` are sure to be those of all. One that is to be silent stays for a
    while: when it ends, torchrun ends the others, which may not have spoken yet.
    """
    if not launched():
        return True
    if _store is None:
        speaks = is_first() or not usage
        time.sleep(0 if speaks else SILENCE_SECONDS)
        return speaks
    try:
        if lost:
            time.sleep(PATIENCE_SECONDS)
            return _store.add("fastgat/errors", 1) == 1
        _store.add("fastgat/errors", 1)
        speaks = _store.add(f"fastgat/error/{message}", 1) == 1
    except RuntimeError:  # the store went with the rank that held it
        return True
    time.sleep(0 if speaks else PATIENCE_SECONDS)
    return speaks


def check_restarts(output: object) -> None:
    """Raises ConfigError where torchrun may start a run again that it will not find again."""
    if launched() and output is None and number("TORCHELASTIC_MAX_RESTARTS", 0) > 0:
        raise ConfigError("--max-restarts needs --output, where the restarted run finds its checkpoint")


def connection_error(error: BaseException, remark: str = "") -> RankError | None:
    """What torch has said of the connection between ranks, in one line; None where the error is another one.

    A rank that has lost another ignores SIGTERM, by which torchrun ends the rest: they are to say this first.
    """
    if not _of_connection(error):
        return None
    if not is_loss(error):
        said = [line.strip() for line in str(error).splitlines() if line.strip()]
        after = said.index(NCCLS) + 1 if NCCLS in said[:-1] else 0
        return RankError(f"ranks cannot talk to each other: {said[after] if said else type(error).__name__}{remark}")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return RankError(f"another rank has gone{remark}", lost=True)


def is_loss(error: BaseException) -> bool:
    """Whether torch says, in its own words, that another rank cannot be reached any more."""
    gone = isinstance(error, dist.DistNetworkError) or GONE.search(str(error)) is not None
    return gone and _of_connection(error)


def _of_connection(error: BaseException) -> bool:
    if isinstance(error, FastgatError):
        return False
    return isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo/", "NCCL"))


def _attemptnumber() -> int:
    """Which of torchrun's attempts this is, where that is sure: its store may still hold the addresses of the last.

    Nodes count restarts each for itself, so that several may differ.
    """
    return number("TORCHELASTIC_RESTART_COUNT", 0) if number("GROUP_WORLD_SIZE", 1) == 1 else 0


def _attempt(work: Callable[[], Result]) -> tuple[Result | None, FastgatError | None]:
    """The result of `work`, or its error as one that can be sent; what is no FastgatError ends this rank alone."""
    try:
        return work(), None
    except FastgatError as error:
        return None, error


@contextmanager
def _one_line(ranks: Ranks) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        said = None if ranks.alone else connection_error(error)
        if said is None:
            raise
        raise said from None

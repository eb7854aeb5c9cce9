"""Several ranks: they compute what one would on their batches together, agree, and end together."""

from __future__ import annotations

import atexit
import os
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

import fastgat
from fastgat import TrainConfig, Trainer
from fastgat.batch import Batch
from fastgat.config import DataConfig, OptimizerConfig, RunConfig
from fastgat.engine import robust
from fastgat.engine.ranks import ALONE, Ranks, check_restarts, connection_error
from fastgat.engine.reduction import GradientMean, synchronised_batch_norm
from fastgat.engine.state import TrainState
from fastgat.errors import ConfigError, DataError, RankError
from fastgat.methods import GAT, Baseline
from tests.data.pictures import make_folder
from tests.engine.ranks import CASES, COMPILED, Case, run, train
from tests.support import BatchNormNet, made_once, minibatch, players

EXACT = 1e-10


def train_all(ranks: Ranks, folder: Path, cases: list[Case]) -> None:
    for case in cases:
        torch.save(train(case, ranks), folder / f"{case.name}-{ranks.rank}.pt")


def far_from_zero(ranks: Ranks, folder: Path) -> None:
    torch.manual_seed(0)
    whole = 100 + 0.1 * torch.randn(8, 3, 4, 4)
    together, alone = torch.nn.BatchNorm2d(3), torch.nn.BatchNorm2d(3)
    with synchronised_batch_norm(ranks, together):
        ours = together(whole[ranks.part(8)])
    torch.testing.assert_close(ours, alone(whole)[ranks.part(8)], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(together.running_var, alone.running_var)


def talk(ranks: Ranks, folder: Path) -> None:
    assert (ranks.count, ranks.first) == (2, ranks.rank == 0)
    assert ranks.gather(ranks.rank) == [0, 1]
    assert ranks.from_first(lambda: f"said by {ranks.rank}") == "said by 0"
    assert ranks.agree(lambda: ranks.rank) == ranks.rank
    assert (ranks.part(6), ranks.share_of(6)) == (slice(3 * ranks.rank, 3 * ranks.rank + 3), 3)

    def fail(*which: int) -> None:
        if ranks.rank in which:
            raise DataError("nothing there")

    with pytest.raises(DataError, match=r"^nothing there$"):
        ranks.from_first(lambda: fail(0))
    with pytest.raises(DataError, match=r"^rank 1: nothing there$"):
        ranks.agree(lambda: fail(1))
    with pytest.raises(DataError, match=r"^nothing there$"):
        ranks.agree(lambda: fail(0, 1))
    with pytest.raises(ConfigError, match="batch_size 7 counts over all ranks: it must be a multiple of the 2"):
        ranks.share_of(7)

    done = folder / "fetched"
    ranks.local_first(lambda: done.touch() if ranks.local_rank == 0 else fail(*([] if done.exists() else [1])))

    assert [ranks.vote(15 * ranks.rank * (i == 1)) for i in range(4)] == [0, 0, 15, 0]  # one vote late
    ranks.vote(0)
    ranks.end_votes()

    ranks.check_same({"a": 1})
    with pytest.raises(RankError, match=r"^ranks differ in a: 0 has 0, 1 has 1$"):
        ranks.check_same({"a": ranks.rank})

    tensor = torch.full((2, 3, 4, 4), ranks.rank + 5).to(memory_format=torch.channels_last)
    ranks.broadcast([tensor])
    assert bool((tensor == 5).all())

    network, _ = players()
    state = TrainState(
        network, None, OptimizerConfig(), Baseline.metrics, memory=torch.zeros(2, 3) + ranks.rank, ranks=ranks
    )
    half = TrainState(*players(dtype=torch.float32), OptimizerConfig(), ("loss",), torch.float16, ranks=ranks)
    weight, before = next(half.classifier.parameters()), half.snapshot()
    for overflowing, kept in (([1], True), ([], False)):
        old = weight.detach().clone()
        with torch.no_grad():
            weight.add_(1)
            half.finish({"loss": torch.tensor(torch.inf if ranks.rank in overflowing else 1.0)}, before)
        assert torch.equal(weight, old) == kept, "a step in which one rank overflows is skipped by all"

    whole = state.gathered_state_dict()["memory"]
    assert whole.equal(torch.tensor([0.0, 0, 1, 1])[:, None].expand(4, 3))
    assert state.local_state_dict({"memory": whole})["memory"].equal(torch.zeros(2, 3) + ranks.rank)

    parameters = {
        "a": torch.rand(8, 3, 3, 3).to(memory_format=torch.channels_last),
        "b": torch.rand(5),
        "c": torch.rand(2, 2).double(),
    }
    mean = GradientMean(parameters, ranks, bucket_bytes=100)
    assert mean.buckets == [["c"], ["b"], ["a"]]  # another dtype, and no more room
    means = mean.start({name: torch.full_like(p, float(ranks.rank)) for name, p in parameters.items()})()
    assert all(bool((each == 0.5).all()) and each.dtype == parameters[name].dtype for name, each in means.items())
    assert means["a"].is_contiguous(memory_format=torch.channels_last)


def step_by_hand(ranks: Ranks, folder: Path) -> None:
    torch.save(own_loop(ranks), folder / f"{ranks.rank}.pt")


def own_loop(ranks: Ranks) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    classifier = BatchNormNet().double()
    batches = [minibatch(4) for _ in range(3)]
    step = fastgat.compile_step(classifier, GAT(cg=0.3), optimizer=OptimizerConfig(generator_lr=1e-3), compile=False)
    for images, labels in batches:
        part = ranks.part(4)
        step(images[part], labels[part])
    return {name: tensor for name, tensor in classifier.state_dict().items() if tensor.is_floating_point()}


def settings(**changes: object) -> TrainConfig:
    small = RunConfig(device="cpu", compile=False)
    chosen = {
        "method": "baseline",
        "epochs": 1,
        "batch_size": 8,
        "run": small,
        "data": DataConfig("folder:images"),
        **changes,
    }
    return TrainConfig(**chosen)  # type: ignore[arg-type]  # as the tests give them


class Centred(nn.Module):
    """A classifier in which samples interact, without batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(images.mean((2, 3)))
        return logits - logits.mean(0)


def misfit(ranks: Ranks, folder: Path) -> None:
    mine = folder / str(ranks.rank)
    mine.mkdir()
    os.chdir(mine)
    if ranks.first:
        make_folder(mine / "images", 8)
    with pytest.raises(DataError, match=r"^rank 1: \S*/1/images: no such folder$"):
        Trainer(settings()).fit()
    if not ranks.first:
        make_folder(mine / "images", 9)
    with pytest.raises(RankError, match=r"^ranks differ in their data: 0 has \d+, 1 has \d+$"):
        Trainer(settings()).fit()
    with pytest.raises(RankError, match=r"^ranks differ in batch_size: 0 has 8, 1 has 16$"):
        Trainer(settings(batch_size=8 * (1 + ranks.rank))).fit()
    interval = RunConfig(device="cpu", compile=False, log_interval=10 * (1 + ranks.rank))
    with pytest.raises(RankError, match=r"^ranks differ in run.log_interval: 0 has 10, 1 has 20$"):
        Trainer(settings(run=interval)).fit()
    with pytest.raises(ConfigError, match="batch_size 9 counts over all ranks"):
        Trainer(settings(batch_size=9)).fit()
    make_folder(mine / "same", 8)
    with pytest.raises(ConfigError, match=r"^no full batch in an epoch: batch_size 2 is larger than the training set$"):
        Trainer(settings(batch_size=2, data=DataConfig("folder:same", train_images=1))).fit()
    batches = [minibatch(2 + ranks.rank, dtype=torch.float32)]
    sizes = r"^ranks differ in the shape of their batches: 0 has \(2, 3, 8, 8\), 1 has \(3, 3, 8, 8\)$"
    with pytest.raises(RankError, match=sizes):
        Trainer(
            settings(data=DataConfig()), classifier=Centred(), train_loader=batches, validation_loader=batches
        ).fit()
    step = fastgat.compile_step(Centred(), "baseline", compile=False)
    with pytest.raises(RankError, match=sizes):
        step(*batches[0])
    images = torch.rand(2, 3, 8, 8) if ranks.first else torch.full((2, 3, 8, 8), 0.5)  # which 1 - images equals
    step(images, torch.arange(2))
    assert step._stepper is not None
    assert step._stepper.state.interacts, "though nothing shows it on rank 1"
    assert not (mine / "runs").exists()


def robust_accuracy(ranks: Ranks, folder: Path) -> None:
    (folder / f"{ranks.rank}").write_text(str(resisting(ranks)))


def resisting(ranks: Ranks) -> tuple[float, int, int]:
    """The robust accuracy of a random network on 7 of 15 images, and how many those are."""
    torch.manual_seed(0)
    network = BatchNormNet()
    images, labels = torch.rand(15, 3, 8, 8), torch.arange(15) % 10
    state = TrainState(network, None, OptimizerConfig(), ("loss",), ranks=ranks)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        network.head.bias.sub_(network.eval()(images).mean(0))  # so that answers differ
        labels.copy_(network(images).argmax(1))  # and each is right
        patch.setattr(robust, "IMAGES", 7)
        mine = Batch(images[ranks.rank :: ranks.count], labels[ranks.rank :: ranks.count])
        measured = robust.RobustAccuracy(state, ("linf", 0.004), [mine], 4 // ranks.count, 0)
        return measured({}), measured.samples, measured.seen


PARTS = (far_from_zero, talk, step_by_hand, misfit, robust_accuracy)


def do_all(ranks: Ranks, folder: Path) -> None:
    """The cases, and the parts one by one, in one pair of processes: to start them takes longer than what they do."""
    train_all(ranks, folder, CASES)
    for part in PARTS:
        own = folder / part.__name__
        own.mkdir(exist_ok=True)
        part(ranks, own)
        os.chdir(folder)
        (own / f"done-{ranks.rank}").touch()


def check_part(part: Callable[[Ranks, Path], None], of_two: Path) -> None:
    assert all((of_two / part.__name__ / f"done-{rank}").exists() for rank in (0, 1))


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What each of two ranks has in the end, for every case, and how the parts went."""
    return made_once(tmp_path_factory, "of-two-ranks", lambda folder: run(2, do_all, folder))


def compare(case: Case, folder: Path) -> None:
    alone = train(replace(case, compiled=False))
    for rank in (0, 1):
        together = torch.load(folder / f"{case.name}-{rank}.pt")
        assert alone.keys() == together.keys()
        for name, tensor in alone.items():
            difference = (together[name] - tensor).abs().max()
            bound = EXACT if tensor.dtype == torch.float64 else 1e-5  # metrics are float32
            assert float(difference) <= bound * float(tensor.abs().max()), name


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_two_ranks_are_one(case: Case, of_two: Path) -> None:
    """In float64, after some steps, on batches that together are the one rank's."""
    compare(case, of_two)


@pytest.mark.slow
def test_batch_norm_keeps_its_digits_far_from_zero(of_two: Path) -> None:
    check_part(far_from_zero, of_two)


def train_compiled(ranks: Ranks, folder: Path) -> None:
    from torch._inductor.utils import run_and_get_code  # slow

    result, codes = run_and_get_code(train, COMPILED, ranks)
    torch.save(result, folder / f"{COMPILED.name}-{ranks.rank}.pt")
    (folder / "code.py").write_text(codes[0])


@pytest.mark.slow
@pytest.mark.long
def test_compiled_the_classifier_s_gradients_travel_during_the_generator_s_backward_pass(tmp_path: Path) -> None:
    run(2, train_compiled, tmp_path)
    compare(COMPILED, tmp_path)
    pattern = r"c10d_functional\.(all_reduce_|wait_tensor)\.default\(|= .*(convolution)"
    calls = re.findall(pattern, (tmp_path / "code.py").read_text())
    happens = ["convolution" if convolution else collective for collective, convolution in calls]
    # Batch norm: two forward passes, and two backward ones for each of the two players.
    assert happens.count("all_reduce_") == happens.count("wait_tensor") == 2 + 4 + 2
    buckets = [i for i, what in enumerate(happens) if what == "all_reduce_"][-2:]
    assert happens[buckets[0] : buckets[1]].count("convolution") >= 3


@pytest.mark.slow
def test_what_ranks_say_to_each_other(of_two: Path) -> None:
    check_part(talk, of_two)


@pytest.mark.slow
def test_a_step_in_a_loop_of_one_s_own(of_two: Path) -> None:
    check_part(step_by_hand, of_two)
    alone = own_loop(ALONE)
    for rank in (0, 1):
        for name, tensor in torch.load(of_two / step_by_hand.__name__ / f"{rank}.pt").items():
            torch.testing.assert_close(tensor, alone[name], rtol=EXACT, atol=EXACT)


@pytest.mark.slow
def test_robust_accuracy_is_that_of_one_rank(of_two: Path) -> None:
    check_part(robust_accuracy, of_two)
    alone = resisting(ALONE)
    assert 0 < alone[0] < 1
    assert alone[1:] == (7, 15)
    assert {(of_two / robust_accuracy.__name__ / str(rank)).read_text() for rank in (0, 1)} == {str(alone)}


def leave_nothing(ranks: Ranks, folder: Path) -> None:
    atexit.register(
        lambda: (folder / f"threads{ranks.rank}").write_text(
            "".join((task / "comm").read_text() for task in Path("/proc/self/task").iterdir())
        )
    )
    train(CASES[0], ranks)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds threads in /proc")
def test_no_thread_of_the_group_outlives_it(tmp_path: Path) -> None:
    """It could end the process by an abort."""
    run(2, leave_nothing, tmp_path)
    for rank in (0, 1):
        threads = (tmp_path / f"threads{rank}").read_text()
        assert "python" in threads or "pt_main" in threads
        assert "gloo" not in threads


@pytest.mark.slow
def test_ranks_that_do_not_fit_each_other(of_two: Path) -> None:
    check_part(misfit, of_two)


def test_a_restarted_run_must_find_its_checkpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    check_restarts(None)
    for name, value in {"TORCHELASTIC_MAX_RESTARTS": "1", "WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="--max-restarts needs --output"):
        check_restarts(None)
    check_restarts(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "0")
    check_restarts(None)


NCCL = """NCCL error in: NCCLUtils.cpp:94, {} (run with NCCL_DEBUG=INFO for details)
{}
Last error:
{}
"""
SYSTEM = "ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error."
USAGE = "ncclInvalidUsage: This usually reflects invalid usage of NCCL library."
REMOTE = "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely."
FULL = "Error while creating shared memory segment /dev/shm/nccl-zcVO1w, error: No space left on device (28)"
TWICE = "Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 50000"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (dist.DistNetworkError("failed to recv, got 0 bytes"), "failed to recv, got 0 bytes"),
        (dist.DistStoreError("wait timeout after 300000ms, keys: /default_pg/0//cuda//1"), "wait timeout"),
        (dist.DistBackendError(NCCL.format("remote process exited", REMOTE, "")), "NCCL error in: NCCLUtils.cpp:94"),
        (dist.DistBackendError(NCCL.format("unhandled", SYSTEM, "connect : Connection refused")), "Connection refused"),
        (RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1234"), "closed by peer"),
        (dist.DistBackendError(NCCL.format("unhandled system error", SYSTEM, FULL)), FULL),
        (dist.DistBackendError(NCCL.format("invalid usage", USAGE, TWICE)), TWICE),
        (
            RuntimeError("[gloo/transport/tcp/pair.cc:446] op.preamble.length <= op.nbytes. 8 vs 4"),
            "op.preamble.length",
        ),
    ],
)
def test_a_lost_connection_is_one_line_in_torch_s_own_words(error: RuntimeError, expected: str) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        said = connection_error(error, "; the rest")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert said is not None
    assert said.lost
    assert str(said).startswith("another rank has gone, or cannot be reached (")
    assert expected in str(said)
    assert str(said).endswith("); the rest")
    assert "\n" not in str(said)


def test_other_errors_are_none_of_the_connection_s() -> None:
    assert connection_error(RuntimeError("the DataLoader timed out")) is None
    assert connection_error(RankError("NCCL is told of in a line of ours")) is None


class OwnNorm(nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).relu()


def test_a_batch_norm_of_another_kind_is_refused() -> None:
    two = Ranks(0, 2)
    with pytest.raises(ConfigError, match="batch norm of the kind OwnNorm"), synchronised_batch_norm(two, OwnNorm(3)):
        pass
    with synchronised_batch_norm(two, OwnNorm(3).eval()):
        pass


def test_batch_norm_is_what_it_was_afterwards() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    before = dict(vars(network[1]))
    with synchronised_batch_norm(Ranks(0, 2), network, None):
        assert type(network[1]).__name__ == "SyncBatchNorm2d"
        assert isinstance(network[1], nn.BatchNorm2d)
    assert type(network[1]) is nn.BatchNorm2d
    assert vars(network[1]) == before

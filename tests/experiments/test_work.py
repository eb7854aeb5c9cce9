"""Work: everything once, by however many processes, in the order of what depends on what."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastgat.config import RunConfig
from fastgat.engine.interrupts import Interrupts
from fastgat.errors import DataError, FastgatError
from fastgat.experiments import RunStore
from fastgat.experiments.search import Search
from fastgat.experiments.work import PipeReporter, _share, work, work_together
from fastgat.reporting.jobs import News
from tests.experiments.jobs import Note, Notes, Timing
from tests.experiments.made_up import plan


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path)


def log(store: RunStore) -> list[tuple[str, str]]:
    return [tuple(line.split()) for line in (store.folder / "log").read_text().splitlines()]  # type: ignore[misc]


def ignore(news: News) -> None:
    pass


def test_what_depends_on_others_comes_after_them(store: RunStore) -> None:
    heard: list[News] = []
    assert work([Notes(3, last=Note(9))], plan(), store, heard.append)
    assert [name for name, _ in log(store)] == ["note-0", "note-1", "note-2", "note-9"]
    assert [news.job for news in heard if news.left is not None] == [name for name, _ in log(store)]
    assert [news.left for news in heard if news.left is not None] == [2, 1, 0, 0]
    work([Notes(3, last=Note(9))], plan(), store, ignore)
    assert len(log(store)) == 4, "a second time, nothing is left to do"


def test_it_stops_where_a_job_was_interrupted(store: RunStore) -> None:
    assert not work([Notes(0, last=Note(1, "stop"))], plan(), store, ignore)


def test_it_waits_for_what_another_process_is_at(store: RunStore) -> None:
    heard: list[News] = []
    with store.claim("note-0") as mine:
        assert mine

        def sleep(seconds: float) -> None:
            store.keep("note-0", {"key": {}, "figures": {}})  # the other process has finished it

        assert work([Notes(2)], plan(), store, heard.append, sleep=sleep)
    assert [name for name, _ in log(store)] == ["note-1"]
    assert [news.words for news in heard if not news.job] == ["waiting for another process, for note-0"]


def test_a_signal_in_a_job_that_comes_to_its_end_still_ends_the_work(store: RunStore) -> None:
    assert not work([Notes(3, odd=Note(9, "signal"))], plan(), store, ignore)
    assert [name for name, _ in log(store)] == ["note-9"], "nothing is begun after it"


def test_a_context_that_is_opened_after_a_signal_has_received_it() -> None:
    """A training whose command was told to stop while the training was being set up."""
    for number in (signal.SIGTERM, signal.SIGINT):
        handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
        with Interrupts() as outer, Interrupts() as between:
            signal.raise_signal(number)
            assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers
            with Interrupts() as inner:
                assert outer.received == between.received == inner.received == number.name
        with Interrupts() as another:
            assert another.received is None
        assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers


def test_a_signal_while_waiting_ends_the_work(store: RunStore) -> None:
    def sleep(seconds: float) -> None:
        signal.raise_signal(signal.SIGTERM)

    with store.claim("note-0"):
        assert not work([Notes(1)], plan(), store, ignore, sleep=sleep)


def test_what_wants_the_machine_for_itself_waits_for_all_others(store: RunStore) -> None:
    """Also for what another command is at."""
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            raise InterruptedError

    with store.claim("a training of another command") as mine:
        assert mine
        with pytest.raises(InterruptedError):
            work([Notes(0, last=Timing(1))], plan(), store, ignore, sleep=sleep)
    assert not (store.folder / "log").exists()
    with store.claim("a timing", alone=True) as mine:
        assert mine
        with store.claim("a training") as other:
            assert not other, "nor does anything begin meanwhile"
    assert work([Notes(0, last=Timing(1))], plan(), store, ignore)


def test_a_worker_whose_command_is_gone_is_told_so_once() -> None:
    here, there = multiprocessing.Pipe(duplex=False)
    here.close()
    for asked_before in (False, True):  # a second signal would end the process
        with Interrupts() as interrupts:
            if asked_before:
                signal.raise_signal(signal.SIGTERM)
            tell = PipeReporter(there, interrupts)
            for _ in range(3):
                tell(News("a job", 0, ""))
            assert interrupts.received == "SIGTERM"
    there.close()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_second_ctrl_c_waits_for_no_worker(store: RunStore) -> None:
    at: list[float] = []

    def twice(news: News) -> None:
        if not at:
            at.append(time.monotonic())
            signal.raise_signal(signal.SIGINT)  # before the clock of the second one starts, or the two might be one
            threading.Timer(1, signal.raise_signal, [signal.SIGINT]).start()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            work_together([Notes(0, odd=Note(0, "sleep"))], plan(), store, twice, processes=2)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - at[0] < 30
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_each_process_has_a_gpu_of_its_own(device: str, store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastgat.experiments.work.pick_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    base = replace(plan().base, run=RunConfig(device=device))
    asked, sweep = replace(plan(), base=base), Search((({"lr": 0.1}, base),))
    for number, own in ((0, "cuda:0"), (1, "cuda:1"), (2, "cuda:0")):
        shared = _share(asked, number, 3)
        assert shared.cell(base.method, 0).config.run.device == own  # type: ignore[arg-type]  # a Method
        assert {cell.config.run.device for cell in sweep.cells(shared, store)} == {own}


@pytest.mark.slow
def test_several_processes_do_each_job_once(store: RunStore) -> None:
    heard: list[News] = []
    assert work_together([Notes(40, last=Timing(50))], plan(), store, heard.append, processes=2)
    done = log(store)
    assert sorted(name for name, _ in done) == sorted(f"note-{number}" for number in [*range(40), 50])
    assert done[-1][0] == "note-50", "what wants the machine for itself comes last"
    assert len({process for _, process in done[:-1]}) == 2
    assert sum(news.left is not None for news in heard) == 41


@pytest.mark.slow
@pytest.mark.parametrize(
    ("does", "error", "message"),
    [
        ("fail", DataError, "the data are gone"),
        pytest.param("break", RuntimeError, "KeyError: 'a mistake'", marks=pytest.mark.long),
        ("die", FastgatError, "a process of this command died"),
        pytest.param("exhaust", FastgatError, "out of memory: try fewer --jobs", marks=pytest.mark.long),
    ],
)
@pytest.mark.timeout(120)
def test_a_process_that_fails_ends_all_of_them(
    store: RunStore, does: str, error: type[Exception], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    with pytest.raises(error, match=message):
        work_together([Notes(1000, odd=Note(2000, does))], plan(), store, ignore, processes=2)
    assert time.monotonic() - began < 60


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_no_worker_outlives_an_error_of_the_command(store: RunStore) -> None:
    def broken(news: News) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        work_together([Notes(1000)], plan(), store, broken, processes=2)
    assert not multiprocessing.active_children()

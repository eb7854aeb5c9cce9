"""Doing what is left to do: in this process, or in several that share the store."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import torch

from fastgat.engine.allocator import keep_freed_memory
from fastgat.engine.device import pick_device
from fastgat.engine.interrupts import Interrupts
from fastgat.errors import FastgatError, is_out_of_memory
from fastgat.experiments.base import Experiment
from fastgat.experiments.jobs import Job
from fastgat.experiments.plan import Plan
from fastgat.experiments.store import RunStore
from fastgat.reporting.jobs import News, Report

PATIENCE = 2.0
"""Seconds between two looks at what other processes have finished."""


def pending(experiments: Sequence[Experiment], plan: Plan, store: RunStore) -> list[Job]:
    """What can be done now and is not, each job once."""
    jobs = {job.name: job for experiment in experiments for job in experiment.jobs(plan, store)}
    return [job for job in jobs.values() if not job.done(store)]


def work(
    experiments: Sequence[Experiment],
    plan: Plan,
    store: RunStore,
    report: Report,
    *,
    alone: bool = True,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Do all that `experiments` ask for, leaving to other processes what they are at; False where a signal came first.

    Returns when everything is done, by whomever. Without `alone`, jobs that want the machine for themselves are left.
    """
    said: set[str] = set()
    with Interrupts() as interrupts:
        while left := [job for job in pending(experiments, plan, store) if alone or not job.alone]:
            for job in left:
                with store.claim(job.name, alone=job.alone) as mine:
                    if not mine:
                        continue
                    if not job.done(store):  # by another process, meanwhile
                        words = job.run(store, report, lambda: interrupts.received)
                        if words is None:
                            return False
                        report(News(job.name, 1, words, left=len(left) - 1))
                    break
            else:
                names = {job.name for job in left}
                if names != said:
                    report(News("", 0, f"waiting for another process, for {', '.join(sorted(names))}"))
                    said = names
                sleep(PATIENCE)
            if interrupts.received:
                return False
    return True


def work_together(
    experiments: Sequence[Experiment], plan: Plan, store: RunStore, report: Report, processes: int
) -> bool:
    """As `work`, by several processes, each with its share of the cores (or of the GPUs); what wants the machine for
    itself is done by this one, after them. An error of one stops all, at their next checkpoint."""
    if processes > 1 and not _in_parallel(experiments, plan, store, report, processes):
        return False
    return work(experiments, plan, store, report)


def _in_parallel(
    experiments: Sequence[Experiment], plan: Plan, store: RunStore, report: Report, processes: int
) -> bool:
    complete, failure = True, None
    with Interrupts() as interrupts, _workers(experiments, plan, store, processes) as (workers, stop):
        open_pipes = set(workers)
        while open_pipes:
            for pipe in wait(list(open_pipes), timeout=0.5):
                assert isinstance(pipe, Connection)
                try:
                    message = pipe.recv()
                except EOFError:
                    open_pipes.discard(pipe)
                    message = _death(workers[pipe])
                if isinstance(message, News):
                    report(message)
                elif isinstance(message, BaseException):
                    failure = failure or message
                else:
                    complete = complete and message
            if failure or interrupts.received:
                stop()
    if failure is not None:
        raise failure
    return complete and not interrupts.received


Workers = dict[Connection, BaseProcess]


@contextmanager
def _workers(
    experiments: Sequence[Experiment], plan: Plan, store: RunStore, processes: int
) -> Iterator[tuple[Workers, Callable[[], None]]]:
    """Processes by the pipe on which they tell their news, and what stops them; none outlives the context."""
    context = multiprocessing.get_context("spawn")
    workers: Workers = {}
    stopping = False

    def stop() -> None:
        nonlocal stopping
        if not stopping:
            stopping = True
            for worker in workers.values():
                worker.terminate()  # SIGTERM: training writes its checkpoint first

    try:
        with _deaf_to_ctrl_c():
            for number in range(processes):
                here, there = context.Pipe(duplex=False)
                arguments = (experiments, plan, store, there, number, processes)
                workers[here] = context.Process(target=_serve, args=arguments)
                workers[here].start()
                there.close()
        yield workers, stop
    except BaseException as error:
        if stopping and isinstance(error, KeyboardInterrupt):  # a second Ctrl-C
            for worker in workers.values():
                worker.kill()
        stop()
        raise
    finally:
        for pipe, worker in workers.items():
            pipe.close()
            worker.join()


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Processes that are started here never hear of Ctrl-C, which the command passes on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _death(worker: BaseProcess) -> FastgatError | bool:
    """What it means that a worker has gone: an error, unless it had said all or was told to stop."""
    worker.join()
    if worker.exitcode in (0, -signal.SIGTERM):
        return True
    return FastgatError(f"a process of this command died (exit code {worker.exitcode}; out of memory?)")


class Teller:
    """Sends news to the command; when that is gone, asks this process to stop, unless it has been asked already."""

    def __init__(self, pipe: Connection, interrupts: Interrupts) -> None:
        self.pipe, self.interrupts, self.heard = pipe, interrupts, True

    def __call__(self, message: News | BaseException | bool) -> None:
        if not self.heard:
            return
        try:
            self.pipe.send(message)
        except BrokenPipeError:
            self.heard = False
            if not self.interrupts.received:  # a second signal would act at once
                signal.raise_signal(signal.SIGTERM)  # training writes its checkpoint first


def _serve(
    experiments: Sequence[Experiment], plan: Plan, store: RunStore, pipe: Connection, number: int, processes: int
) -> None:
    """A worker: sends its news, and at the end whether it has come to the end, or why not."""
    os.setsid()
    with Interrupts() as interrupts:
        tell = Teller(pipe, interrupts)
        try:
            tell(work(experiments, _share(plan, number, processes), store, tell, alone=False))
        except FastgatError as error:
            tell(error)
        except OSError as error:
            tell(FastgatError(f"{error.filename or 'output'}: {error.strerror or error}"))
        except Exception as error:  # noqa: BLE001  # it is raised where the command runs
            if is_out_of_memory(error):
                tell(FastgatError("out of memory: try fewer --jobs, a smaller --batch-size or network"))
            else:
                traceback.print_exc()
                tell(RuntimeError(f"{type(error).__name__}: {error}"))


def _share(plan: Plan, number: int, processes: int) -> Plan:
    """The plan on this worker's part of the machine: every n-th core, or a GPU."""
    keep_freed_memory()
    device = pick_device(plan.base.run.device)
    if device.type == "cuda":
        if plan.base.run.device in ("auto", "cuda"):
            name = f"cuda:{number % torch.cuda.device_count()}"
            return replace(plan, base=replace(plan.base, run=replace(plan.base.run, device=name)))
        return plan
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        own = cores[number::processes] or [cores[number % len(cores)]]
        os.sched_setaffinity(0, own)
        torch.set_num_threads(len(own))
    return plan

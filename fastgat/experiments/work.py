"""Doing what is left to do: in this process, or in several that share the store."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import torch

from fastgat.engine.allocator import keep_freed_memory
from fastgat.engine.device import pick_device
from fastgat.engine.interrupts import Interrupts
from fastgat.errors import FastgatError
from fastgat.experiments.base import Experiment
from fastgat.experiments.jobs import Job
from fastgat.experiments.plan import Plan
from fastgat.experiments.store import Store
from fastgat.reporting.jobs import News, Report

PATIENCE = 2.0
"""Seconds between two looks at what other processes have finished."""


def pending(experiments: Sequence[Experiment], plan: Plan, store: Store) -> list[Job]:
    """What can be done now and is not, each job once."""
    jobs = {job.name: job for experiment in experiments for job in experiment.jobs(plan, store)}
    return [job for job in jobs.values() if not job.done(store)]


def work(
    experiments: Sequence[Experiment],
    plan: Plan,
    store: Store,
    report: Report,
    *,
    alone: bool = True,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Do all that `experiments` ask for, leaving to other processes what they are at; False where a signal came first.

    Returns when everything is done, by whomever. Without `alone`, jobs that want the machine for themselves are left.
    """
    waiting: set[str] = set()
    while left := [job for job in pending(experiments, plan, store) if alone or not job.alone]:
        began = next((job for job in left if (taken := _take(job, store, report)) is not None), None)
        if began is None:
            if waiting != {job.name for job in left}:
                waiting = {job.name for job in left}
                report(News("", 0, f"waiting for another process to finish {', '.join(sorted(waiting))}"))
            sleep(PATIENCE)
        elif not taken:
            return False
    return True


def _take(job: Job, store: Store, report: Report) -> bool | None:
    """Do a job if nobody else is at it: None if somebody is, False if it was interrupted."""
    with store.claim(job.name) as mine:
        if not mine:
            return None
        return True if job.done(store) else job.run(store, report)


def work_together(experiments: Sequence[Experiment], plan: Plan, store: Store, report: Report, processes: int) -> bool:
    """As `work`, by several processes, each with its share of the cores (or of the GPUs); what wants the machine for
    itself is done by this one, after them. An error of one stops all, at their next checkpoint."""
    if processes > 1 and not _in_parallel(experiments, plan, store, report, processes):
        return False
    return work(experiments, plan, store, report)


def _in_parallel(experiments: Sequence[Experiment], plan: Plan, store: Store, report: Report, processes: int) -> bool:
    context = multiprocessing.get_context("spawn")
    workers: dict[Connection, BaseProcess] = {}
    for number in range(processes):
        here, there = context.Pipe(duplex=False)
        worker: BaseProcess = context.Process(target=_serve, args=(experiments, plan, store, there, number, processes))
        worker.start()
        there.close()
        workers[here] = worker
    complete, failure, stopping, open_pipes = True, None, False, set(workers)
    with Interrupts() as interrupts:
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
            if (failure or interrupts.received) and not stopping:
                stopping = True
                for worker in workers.values():
                    worker.terminate()  # SIGTERM: training writes its checkpoint first
    for worker in workers.values():
        worker.join()
    if failure is not None:
        raise failure
    return complete and not interrupts.received


def _death(worker: BaseProcess) -> FastgatError | bool:
    """What it means that a worker has gone: an error, unless it had said all or was told to stop."""
    worker.join()
    if worker.exitcode in (0, -signal.SIGTERM):
        return True
    return FastgatError(f"a process of this command died (exit code {worker.exitcode}; out of memory?)")


def _serve(
    experiments: Sequence[Experiment], plan: Plan, store: Store, pipe: Connection, number: int, processes: int
) -> None:
    """A worker: sends its news, and at the end whether it has come to the end, or why not."""
    os.setsid()  # Ctrl-C is for the command, which passes it on

    def tell(message: News) -> None:
        try:
            pipe.send(message)
        except BrokenPipeError:  # the command is gone: training ends at its next checkpoint, everything else at once
            signal.raise_signal(signal.SIGTERM)

    try:
        own = _share(plan, number, processes)
        pipe.send(work(experiments, own, store, tell, alone=False))
    except BrokenPipeError:
        return
    except FastgatError as error:
        pipe.send(error)
    except Exception as error:  # noqa: BLE001  # it is raised where the command runs
        traceback.print_exc()
        pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))


def _share(plan: Plan, number: int, processes: int) -> Plan:
    """The plan on this worker's part of the machine: every n-th core, or a GPU."""
    keep_freed_memory()
    device = pick_device(plan.base.run.device)
    if device.type == "cuda":
        if plan.base.run.device == "auto":
            name = f"cuda:{number % torch.cuda.device_count()}"
            return replace(plan, base=replace(plan.base, run=replace(plan.base.run, device=name)))
        return plan
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        own = cores[number::processes] or [cores[number % len(cores)]]
        os.sched_setaffinity(0, own)
        torch.set_num_threads(len(own))
    return plan

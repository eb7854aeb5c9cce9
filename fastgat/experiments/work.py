"""The loop that does all jobs: in this process, or in several that share the store."""

import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from fastgat.engine.device import keep_freed_memory, pick_device
from fastgat.engine.interrupts import Interrupts
from fastgat.experiments.base import Experiment
from fastgat.experiments.jobs import Job
from fastgat.experiments.plan import Plan
from fastgat.experiments.store import RunStore
from fastgat.reporting.jobs import News, Report
from fastgat.worker import WorkerProcess

PATIENCE = 2.0  # seconds between two looks at what other processes have finished


def pending(experiments: Sequence[Experiment], plan: Plan, store: RunStore) -> list[Job]:
    """The jobs that can be done now and are not, each once."""
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
    """Do the jobs of `experiments` that no other process is doing, until all are done; False if a signal came first.

    Without `alone`, jobs that need the machine for themselves are not done.
    """
    announced: set[str] = set()
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
                if names != announced:
                    report(News("", 0, f"waiting for another process, for {', '.join(sorted(names))}"))
                    announced = names
                sleep(PATIENCE)
            if interrupts.received:
                return False
    return True


def work_together(
    experiments: Sequence[Experiment], plan: Plan, store: RunStore, report: Report, processes: int
) -> bool:
    """As `work`, by several processes, each with its share of the cores (or of the GPUs); what wants the machine for
    itself is done by this one, after them. An error of one stops all, at their next checkpoint."""
    if processes == 1:
        return work(experiments, plan, store, report)
    advice = "try fewer --jobs, a smaller --batch-size or network"
    complete, stopping, failure = True, False, None
    workers: dict[Any, WorkerProcess] = {}

    def stop() -> None:
        for worker in workers.values():
            worker.stop()

    with Interrupts() as interrupts, ExitStack() as stack:
        stack.push(lambda kind, *_: stop() if kind is not None else None)
        for number in range(processes):
            arguments = (experiments, plan, store, number, processes)
            worker = stack.enter_context(WorkerProcess(_serve, *arguments, advice=advice))
            workers[worker.pipe] = worker
        running = set(workers)
        while running:
            for pipe in wait(list(running), timeout=0.5):
                try:
                    message = workers[pipe].receive()
                except Exception as error:  # noqa: BLE001  # raised below, when every process has ended
                    failure, message = failure or (None if stopping else error), False
                if isinstance(message, News):
                    report(message)
                else:
                    running.discard(pipe)
                    complete = complete and message
            if (failure or interrupts.received) and not stopping:
                stopping = True
                stop()
    if failure is not None:
        raise failure
    return complete and not interrupts.received and work(experiments, plan, store, report)


class PipeReporter:
    """Sends news to the command; when that is gone, asks this process to stop, unless it has been asked already."""

    def __init__(self, pipe: Connection, interrupts: Interrupts) -> None:
        self.pipe, self.interrupts, self.heard = pipe, interrupts, True

    def __call__(self, message: News | bool) -> None:
        if not self.heard:
            return
        try:
            self.pipe.send(message)
        except BrokenPipeError:
            self.heard = False
            if not self.interrupts.received:  # a second signal would act at once
                signal.raise_signal(signal.SIGTERM)  # training writes its checkpoint first


def _serve(
    pipe: Connection, experiments: Sequence[Experiment], plan: Plan, store: RunStore, number: int, processes: int
) -> None:
    """One of several processes: sends its news, and at the end whether it has done all."""
    with Interrupts() as interrupts:
        tell = PipeReporter(pipe, interrupts)
        tell(work(experiments, _share(plan, number, processes), store, tell, alone=False))


def _share(plan: Plan, number: int, processes: int) -> Plan:
    """The plan on this worker's part of the machine: every n-th core, or a GPU."""
    keep_freed_memory()
    device = pick_device(plan.base.run.device)
    if device.type == "cuda":
        if plan.base.run.device in ("auto", "cuda"):
            run = replace(plan.base.run, device=f"cuda:{number % torch.cuda.device_count()}")
            return replace(plan, base=replace(plan.base, run=run))
    elif hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        share = cores[number::processes] or [cores[number % len(cores)]]
        os.sched_setaffinity(0, share)
        torch.set_num_threads(len(share))
    return plan

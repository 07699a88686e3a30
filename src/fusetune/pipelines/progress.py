"""Progress on a terminal, and lines in a log where there is none."""

import logging
import time
from typing import Any, Self

logger = logging.getLogger(__name__)
LINE_EVERY = 10.0  # seconds, between log lines where there is no terminal


class Bar:
    """A rich progress bar that is silent without a terminal; `note` writes a log line now and then instead."""

    def __init__(self) -> None:
        from rich import get_console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        console = get_console()
        self.terminal = console.is_terminal
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[text]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not self.terminal,
        )
        self.tasks: dict[str, Any] = {}
        self.begun, self.noted = time.perf_counter(), time.perf_counter()

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.progress.stop()

    def show(self, name: str, done: int, total: int, text: str) -> None:
        if name not in self.tasks:
            self.tasks[name] = self.progress.add_task(name, total=total, text=text)
            self.begun = time.perf_counter()
        self.progress.update(self.tasks[name], completed=done, total=total, text=text)
        now = time.perf_counter()
        if not self.terminal and (now - self.noted > LINE_EVERY or done == total):
            left = (now - self.begun) / max(done, 1) * (total - done)
            logger.info("%s: %d of %d, %s, %.0f s left", name, done, total, text, left)
            self.noted = now

    def rate(self, done: int) -> float:
        return done / max(time.perf_counter() - self.begun, 1e-9)


class StepProgress(Bar):
    """For pretraining: phase, step, losses."""

    def __call__(self, phase: str, step: int, steps: int, losses: dict[str, float]) -> None:
        self.show(f"pretrain {phase}", step, steps, " ".join(f"{name} {loss:.2f}" for name, loss in losses.items()))


class ExtractionProgress(Bar):
    """For the cache: samples, samples per second, bytes written."""

    def __call__(self, done: int, total: int, written: int) -> None:
        self.show("cache features", done, total, f"{self.rate(done):.0f} samples/s, {written / 1e6:.1f} MB written")


class DecodeProgress(Bar):
    """For validation: cells decoded, per modality."""

    def __call__(self, modality: str, done: int, total: int) -> None:
        self.show(f"decode {modality}", done, total, f"{self.rate(done):.0f} cells/s")

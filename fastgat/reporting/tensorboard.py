"""TensorBoard event files in the run folder."""

from pathlib import Path

from fastgat.engine.events import Callback, End, EpochEnd, Interval, Start
from fastgat.errors import ConfigError


class TensorBoard(Callback):
    """Writes every reported metric under "train/" and every validation figure under "validation/"."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ConfigError("tensorboard is not installed: pip install 'fastgat-trainer[tensorboard]'") from None
        self._open = SummaryWriter
        self.folder = folder

    def on_start(self, event: Start) -> None:
        self.writer = self._open(str(self.folder / "tensorboard"), purge_step=event.step + 1)

    def on_interval(self, event: Interval) -> None:
        for name, value in {**event.metrics, "images_per_second": event.images_per_second}.items():
            self.writer.add_scalar(f"train/{name}", value, event.step)

    def on_epoch(self, event: EpochEnd) -> None:
        for name, value in event.validation.items():
            self.writer.add_scalar(name.replace("_", "/", 1), value, event.step)

    def on_end(self, event: End) -> None:
        self.writer.close()

"""Early stopping, as a listener to a run's epochs."""

from fastgat.engine.events import Callback, EpochEnd, Start


class EarlyStopping(Callback):
    """Ends training when `patience` epochs have brought none that the run's rule prefers."""

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def on_epoch(self, event: Start | EpochEnd) -> None:
        if event.best_epoch is not None and event.epoch - event.best_epoch >= self.patience:
            event.stop(f"no better epoch on the validation images for {self.patience} epochs")

    on_start = on_epoch

"""fastgat: generative adversarial training of image classifiers (Lee, Han and Lee 2017), fast.

from fastgat import TrainConfig, Trainer

history = Trainer(TrainConfig(method="gat", epochs=5)).fit()
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastgat.config import TrainConfig as TrainConfig
    from fastgat.engine.load import load_classifier as load_classifier
    from fastgat.engine.weights import load_weights as load_weights
    from fastgat.errors import FastgatError as FastgatError
    from fastgat.losses import GATLoss as GATLoss
    from fastgat.losses import gat_loss as gat_loss
    from fastgat.stepping import TrainingStep as TrainingStep
    from fastgat.stepping import compile_step as compile_step
    from fastgat.trainer import History as History
    from fastgat.trainer import Trainer as Trainer

_WHERE = {
    "FastgatError": "fastgat.errors",
    "GATLoss": "fastgat.losses",
    "History": "fastgat.trainer",
    "TrainConfig": "fastgat.config",
    "Trainer": "fastgat.trainer",
    "TrainingStep": "fastgat.stepping",
    "compile_step": "fastgat.stepping",
    "gat_loss": "fastgat.losses",
    "load_classifier": "fastgat.engine.load",
    "load_weights": "fastgat.engine.weights",
}
__all__ = list(_WHERE)


def __getattr__(name: str) -> Any:
    # torch takes seconds to import: `fastgat --help` does without it.
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

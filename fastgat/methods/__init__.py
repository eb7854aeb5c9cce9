"""The methods by their names on the command line, those of Table 2 and of other papers; one file a family."""

from typing import Any

from fastgat.errors import ConfigError
from fastgat.methods.adversarial import Adversarial, FGSMRandomStart, NoisyFGSM, PGDTraining
from fastgat.methods.base import Method
from fastgat.methods.baseline import Baseline, Dropout
from fastgat.methods.fast_gradient import FastGradientL2, FastGradientLinf, RandomPerturbation
from fastgat.methods.free import Free
from fastgat.methods.gat import GAT, DropoutGAT
from fastgat.methods.gradient_penalty import GradientPenalty
from fastgat.methods.trades import TRADES
from fastgat.options import suggestion

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        *(Baseline, Dropout, RandomPerturbation, FastGradientLinf, FastGradientL2, GAT, DropoutGAT),
        *(PGDTraining, FGSMRandomStart, NoisyFGSM, Free, TRADES, GradientPenalty),
    )
}


def create_method(name: str, **options: Any) -> Method:
    """The method called `name`; raises ConfigError for a name or an option that does not exist."""
    if name not in METHODS:
        raise ConfigError(f"unknown method {name!r}{suggestion(name, METHODS)}")
    known = METHODS[name].__dataclass_fields__
    for option in options:
        if option not in known:
            users = [m.name for m in METHODS.values() if option in m.__dataclass_fields__]
            where = f" (it belongs to {', '.join(users)})" if users else suggestion(option, known)
            raise ConfigError(f"method {name!r} has no option {option!r}{where}")
    return METHODS[name](**options)


__all__ = [
    "GAT",
    "METHODS",
    "TRADES",
    "Adversarial",
    "Baseline",
    "Dropout",
    "DropoutGAT",
    "FGSMRandomStart",
    "FastGradientL2",
    "FastGradientLinf",
    "Free",
    "GradientPenalty",
    "Method",
    "NoisyFGSM",
    "PGDTraining",
    "RandomPerturbation",
    "create_method",
]

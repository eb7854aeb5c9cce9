"""What Lee, Han and Lee (2017) report: Table 2, and their account of the training time."""

from typing import NamedTuple


class Accuracy(NamedTuple):
    """Mean and standard deviation over 50 initialisations, as fractions."""

    mean: float
    sd: float


METHODS: tuple[str, ...] = ("baseline", "dropout", "random", "fg-linf", "fg-l2", "gat", "dropout-gat")
"""The rows of Table 2, in its order."""
FAST_GRADIENT = ("fg-linf", "fg-l2")

TABLE2: dict[str, dict[str, Accuracy]] = {
    "cifar10": {
        "baseline": Accuracy(0.7748, 0.0046),
        "dropout": Accuracy(0.7849, 0.0064),
        "random": Accuracy(0.7759, 0.0057),
        "fg-linf": Accuracy(0.7812, 0.0059),
        "fg-l2": Accuracy(0.7799, 0.0045),
        "gat": Accuracy(0.8033, 0.0044),
        "dropout-gat": Accuracy(0.8162, 0.0034),
    },
    "cifar100": {
        "baseline": Accuracy(0.4432, 0.0063),
        "dropout": Accuracy(0.4629, 0.0061),
        "random": Accuracy(0.4443, 0.0071),
        "fg-linf": Accuracy(0.4516, 0.0073),
        "fg-l2": Accuracy(0.4567, 0.0063),
        "gat": Accuracy(0.5044, 0.0056),
        "dropout-gat": Accuracy(0.5071, 0.0049),
    },
}
INITIALISATIONS = 50
TRAIN_IMAGES = 45_000
OVERHEAD = "3 to 4"  # the time of a GAT step over that of a fast-gradient step

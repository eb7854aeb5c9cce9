"""The images that trained networks are attacked on, and generators trained on."""

import torch

from fastgat.data import Loader, create_loader, load_dataset
from fastgat.data.download import Progress
from fastgat.data.registry import silent
from fastgat.data.sets import DataSet, Images
from fastgat.evaluation.inputs import Batches, random_subset
from fastgat.evaluation.run import BLOCK
from fastgat.experiments.cell import DATASETS
from fastgat.experiments.plan import Plan


def load_images(plan: Plan, progress: Progress = silent) -> DataSet[Images]:
    """The splits that the plan's runs are trained, validated and tested on; fetched, where they are not there yet."""
    data = plan.base.data
    images = load_dataset(data.dataset, data.data_dir, data.split_seed, progress, data.image_size)
    return images._replace(train=images.train.take(slice(data.train_images)))


def loader(images: Images, device: torch.device, batch_size: int = BLOCK, seed: int = 0) -> Loader:
    return create_loader("auto", images, batch_size, seed=seed, device=device)


def samples_remark(plan: Plan) -> list[str]:
    """What a page says of `test_batches` where they are not all."""
    few = plan.samples is not None and plan.samples < DATASETS[plan.dataset].test_images
    return [f"The figures are on {plan.samples:,} test images, chosen at random."] if few else []


def test_batches(plan: Plan, images: DataSet[Images], device: torch.device) -> Batches:
    """The plan's choice of test images, the same for every figure."""
    return Batches(loader(random_subset(images.test, plan.samples, plan.base.seed), device).once)

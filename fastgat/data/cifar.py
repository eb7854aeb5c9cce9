"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) as published, python version: 50,000 training and 10,000 test images."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastgat.data.download import Progress, data_folder, download, extract, verify
from fastgat.data.pickles import read_pickle
from fastgat.data.sets import DataSet, ImageSet, split
from fastgat.errors import DataError, first_line

VALIDATION = 5_000


@dataclass(frozen=True)
class Cifar:
    """One of the two: its files with their published MD5 sums, and the keys of their pickles."""

    name: str
    title: str
    folder: str
    url: str
    archive_md5: str
    train: dict[str, str]
    test: dict[str, str]
    meta: dict[str, str]
    label_key: str
    names_key: str

    @property
    def files(self) -> dict[str, str]:
        return self.train | self.test | self.meta

    @property
    def archive(self) -> str:
        return self.url.rsplit("/", 1)[-1]

    def find(self, data_dir: Path | None) -> Path | None:
        """The folder that holds the extracted files, or the official archive, or None."""
        root = data_folder(data_dir)
        for place in (root / self.folder, root, root / self.archive):
            if any((place / name).is_file() for name in self.train) or (place.suffix == ".gz" and place.is_file()):
                return place
        return None

    def fetch(self, data_dir: Path | None, progress: Progress, *, again: bool = False) -> Path:
        """The folder with the verified files, extracted or downloaded first where need be.

        Raises DataError if they cannot be had or are not the published ones.
        """
        place = self.find(data_dir)
        if place is None:
            root = data_folder(data_dir)
            try:
                place = download(self.url, self.archive_md5, root, progress)
            except DataError as error:
                raise DataError(f"{root} holds neither {self.folder}/ nor its archive, and {error}") from None
        archive = place.parent / self.archive
        if place.is_dir() and archive.is_file() and not all((place / name).exists() for name in self.files):
            place = archive  # an extraction that was cut short
        if place.is_file():
            verify(place, self.archive_md5, again=again)
            archive, place = place, place.parent / self.folder
            extract(archive, self.files, place)
        for name, expected in self.files.items():
            verify(place / name, expected, again=again)
        return place

    def load(self, data_dir: Path | None, split_seed: int, progress: Progress) -> DataSet[ImageSet]:
        """45,000 / 5,000 / 10,000 images, the validation images chosen by `split_seed`."""
        folder = self.fetch(data_dir, progress)
        try:
            train, validation = split(self._read(folder, self.train), VALIDATION, split_seed)
            (meta,) = (folder / name for name in self.meta)
            classes = tuple(name.decode() for name in read_pickle(meta.read_bytes(), str(meta))[self.names_key])
            return DataSet(self.name, train, validation, self._read(folder, self.test), classes, str(folder))
        except DataError:
            raise
        except (AttributeError, LookupError, TypeError, ValueError) as error:  # altered since the sums were compared
            raise DataError(f"{folder}: holds other files than those published ({first_line(error)})") from None

    def _read(self, folder: Path, names: Iterable[str]) -> ImageSet:
        parts = [read_pickle((folder / name).read_bytes(), str(folder / name)) for name in names]
        images = np.concatenate([part["data"] for part in parts]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return ImageSet(images, np.concatenate([part[self.label_key] for part in parts]))


CIFAR10 = Cifar(
    name="cifar10",
    title="CIFAR-10: 60,000 photographs of 10 kinds, 32 x 32 x 3",
    folder="cifar-10-batches-py",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    archive_md5="c58f30108f718f92721af3b95e74349a",
    train={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    },
    test={"test_batch": "40351d587109b95175f43aff81a1287e"},
    meta={"batches.meta": "5ff9c542aee3614f3951f8cda6e48888"},
    label_key="labels",
    names_key="label_names",
)

CIFAR100 = Cifar(
    name="cifar100",
    title="CIFAR-100: 60,000 photographs of 100 kinds, 32 x 32 x 3",
    folder="cifar-100-python",
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    archive_md5="eb9058c3a382ffc7106e4002c42a8d85",
    train={"train": "16019d7e3df5f24257cddd939b257f8d"},
    test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
    meta={"meta": "7973b15100ade9c7d40fb424638fde48"},
    label_key="fine_labels",
    names_key="fine_label_names",
)

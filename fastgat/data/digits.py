"""Handwritten digits, 1,797 images of 8 x 8, scaled to 32 x 32 x 3: a part of this package, for any machine.

They are the test set of UCI's "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998, CC BY 4.0,
https://doi.org/10.24432/C50P49), in the file that scikit-learn ships: a line is 64 pixels of 0 to 16, and a label.
"""

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from fastgat.data.download import Progress, verify
from fastgat.data.sets import DataSet, ImageSet, split

MD5 = "9b335364a7bfd63947c7480a5bd51f2d"
TEST, VALIDATION = 360, 180
TEST_SEED = 0


class Digits:
    name = "digits"
    title = "digits: 1,797 handwritten digits, scaled to 32 x 32 x 3 (part of fastgat)"

    def find(self, data_dir: Path | None) -> Path:
        return Path(__file__).with_suffix(".csv.gz")

    def fetch(self, data_dir: Path | None, progress: Progress, *, again: bool = False) -> Path:
        """The file, verified; raises DataError if it is not the published one."""
        verify(self.find(data_dir), MD5, again=again)
        return self.find(data_dir)

    def load(self, data_dir: Path | None, split_seed: int, progress: Progress) -> DataSet[ImageSet]:
        """1,257 / 180 / 360 images; the test images are the same for every `split_seed`."""
        table = np.loadtxt(self.fetch(data_dir, progress), delimiter=",")
        small, labels = table[:, :-1], table[:, -1]
        square = torch.from_numpy(small).reshape(-1, 1, 8, 8) / 16
        large = functional.interpolate(square, (32, 32), mode="bilinear", align_corners=False)
        images = (large * 255).round().to(torch.uint8).repeat(1, 3, 1, 1).permute(0, 2, 3, 1)
        everything = ImageSet(images.contiguous().numpy(), labels.astype(np.int64))
        rest, test = split(everything, TEST, TEST_SEED)
        train, validation = split(rest, VALIDATION, split_seed)
        return DataSet(self.name, train, validation, test, tuple("0123456789"), "this package")


DIGITS = Digits()

"""scikit-learn's 8 x 8 digits: 1,797 images that need no download."""

from pathlib import Path

import numpy as np

from data.images import Splits, array_part
from data.splits import stratified
from utils.errors import DataError

TEST_IMAGES = 360


def open_digits(_: Path) -> Splits:
    """1,437 training and 360 test images, stratified, always the same."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("the digits come with scikit-learn: pip install scikit-learn") from error
    raw = load_digits()
    pixels = np.rint(raw.images * 255 / 16).astype(np.uint8)[:, None]
    whole = array_part(pixels, raw.target, [str(digit) for digit in range(10)])
    test, train = stratified(whole.labels, TEST_IMAGES, 0, "digits")
    return Splits(whole.select(train), whole.select(test))

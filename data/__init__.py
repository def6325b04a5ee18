"""Datasets to batches: the clean and the prompted view of the training set, and the test set."""

from data.load import Data, DataConfig, load_data
from data.specs import SPECS, Spec
from data.views import View

__all__ = ["SPECS", "Data", "DataConfig", "Spec", "View", "load_data"]

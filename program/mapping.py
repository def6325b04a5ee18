"""Where the label mapping of a run is made: one source class for each target class (paper, FLM).

A level maps three times at most: the dense network (`start`, once for all densities), the network
under its first mask (`remap`, called by the search), and with `ilm` before every epoch.
"""

from torch import Tensor

from data import Data
from models import PromptedClassifier
from models.label_map import count_predictions, frequency_mapping, random_mapping
from program.settings import Config
from pruning.measure import Counts, evaluate


class LabelMapping:
    """Makes the label maps of one run's models.

    Its draws depend on the seed alone, so that a dense network gives the same for all densities.
    """

    def __init__(self, config: Config, data: Data) -> None:
        self._config, self._data = config, data
        self._dense: tuple[Tensor | None, Counts] | None = None

    def start(self, model: PromptedClassifier) -> Counts:
        """Map a fresh model and measure it on the test images; computed at the first call only."""
        if self._dense is None:
            self.remap(model)
            self._dense = model.label_map, evaluate(model, self._data.test)
        label_map, counts = self._dense
        model.label_map = None if label_map is None else label_map.clone()
        return counts

    def remap(self, model: PromptedClassifier) -> None:
        """Map the labels with the model as it is, in place."""
        mode, classes = self._config.method.label_mapping_mode, len(self._data.classes)
        if mode == "none":
            return
        if mode == "rlm":
            label_map = random_mapping(model.sources, classes, self._config.run.seed)
        else:
            label_map = frequency_mapping(self._counts(model, classes))
        model.label_map = label_map.to(model.mean.device)

    def _counts(self, model: PromptedClassifier, classes: int) -> Tensor:
        """How many training images of each class the model puts into each source class, (S, C)."""
        view = self._data.clean.in_batches_of(self._config.measured_batch)
        batches = view.batches(self._config.run.seed, "mapping")
        return count_predictions(model, batches, classes, self._config.maps_with_prompt)

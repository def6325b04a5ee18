"""The classifier of a level, and where its label mapping is made (paper, FLM).

A level maps three times at most: the dense network (`start`, once for all densities), the network
under its first mask (`remap`, called by the search), and with `ilm` before every epoch.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from data import Data
from models import NetworkConfig, PromptedClassifier, build_network
from models.artifact import masks_of
from models.backbones import backbone, network_of
from models.channels import channels_of
from models.label_map import count_predictions, frequency_mapping, random_mapping
from models.rows import colours
from models.widths import Widths
from program.given import given_outputs
from program.settings import Config, check_classes
from prompts import VisualPrompt
from pruning.granularity import ChannelRule, Rule, rule_of
from pruning.masks import prunable, require_fit
from pruning.measure import Counts, evaluate


def build_model(
    config: Config, classes: int, device: torch.device,
    start: tuple[dict[str, Tensor], Widths] | None = None,
) -> PromptedClassifier:
    """The pre-trained network with a fresh prompt; a head of its own when nothing is mapped.

    With `start`, the weights and widths of a dense network, it is that one.
    """
    own, mapping = config.network, config.method.label_mapping_mode
    own_head = classes if mapping == "none" else None
    given = given_outputs(config)
    # All weights come from the file of --init_from; those of the network's need not be fetched.
    weights = "none" if given and own.weights == backbone(own.network).weights else own.weights
    prompt, seed = config.build_prompt(), config.run.seed
    if start is None:
        model = classifier(own, weights, own_head or given, prompt, seed)
    else:
        tensors, widths = start
        network = network_of(own.network, tensors, "the dense network", seed=seed, widths=widths)
        model = around(own.network, network, prompt, own.normalisation)
    model.to(device)
    check_classes(model.sources, classes, mapping)
    model.use(config.precision, config.recipe)
    return model


def classifier(
    own: NetworkConfig, weights: str, head: int | None, prompt: VisualPrompt | None, seed: int = 0,
    widths: Widths | None = None,
) -> PromptedClassifier:  # fmt: skip
    """A network with `weights` behind a prompt; `head` and `widths` as in `build_network`."""
    network = build_network(own.network, weights, head, seed, own.weights_key, widths)
    return around(own.network, network, prompt, own.normalisation)


def around(
    name: str, network: nn.Module, prompt: VisualPrompt | None, normalisation: str | None
) -> PromptedClassifier:
    """The classifier around a network of this name, its inputs normalised as it was trained."""
    row = backbone(name)
    mean, std = (row.mean, row.std) if normalisation is None else colours(normalisation)
    return PromptedClassifier(network, prompt, mean, std, row.head)


def pruning_rule(config: Config, network: nn.Module) -> Rule:
    """The rule by which --granularity turns the scores of this network's weights into masks.

    Raises UsageError when a density leaves layers without a channel.
    """
    size = max(config.sizes.input, config.sizes.output * any(config.prompted))
    rule = rule_of(config.method.granularity, partial(channels_of, network, size))
    if isinstance(rule, ChannelRule):
        for density in config.levels:
            rule.require(density)
    return rule


def fitting_masks(
    name: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]
) -> dict[str, Tensor]:
    """The masks of a model file that says it holds this network.

    Raises ValueError or LookupError when its tensors or masks are those of another; for within
    `understood`.
    """
    network = backbone(name, meta.get("widths")).skeleton_of(tensors)
    masks = masks_of(tensors, meta)
    require_fit(masks, prunable(network))
    return masks


class LabelMapping:
    """Makes the label maps of one run's models; its draws depend on the seed alone."""

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
        config, classes = self._config, len(self._data.classes)
        mode, seed = config.method.label_mapping_mode, config.run.seed
        if mode == "none":
            return
        if mode == "rlm":
            label_map = random_mapping(model.sources, classes, seed)
        else:
            view = self._data.clean.unmixed().in_batches_of(config.measured_batch)
            batches = view.batches(seed, "mapping")
            counts = count_predictions(model, batches, classes, config.maps_with_prompt)
            label_map = frequency_mapping(counts)
        model.label_map = label_map.to(model.mean.device)

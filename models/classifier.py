"""The classifier that is pruned: prompt, normalise, network, label mapping."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from utils.precision import Precision
from utils.recipe import Recipe


class PromptedClassifier(nn.Module):
    """Images in [0, 1] to logits of the target classes.

    The network keeps its own state-dict keys; the prompt is None in a run without one; `label_map`
    (C,) holds a source class for each target class, or is None when the head has one output per
    target class.
    """

    def __init__(
        self,
        network: nn.Module,
        prompt: nn.Module | None = None,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        head: str = "",
    ) -> None:
        """`head` is the layer whose outputs are classes; '' is the network's last linear one."""
        super().__init__()
        self.network = network
        self.prompt = prompt
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.register_buffer("label_map", None)
        self.precision, self.recipe, self._head = Precision(), Recipe(), head
        self.names: tuple[str, ...] = ()  # of the target classes, where they are known

    def use(self, precision: Precision, recipe: Recipe | None = None) -> None:
        """Run the network in this precision from now on, and train it by this recipe."""
        self.precision, self.recipe = precision, recipe or self.recipe
        precision.prepare(self.network)

    @property
    def sources(self) -> int:
        """The number of the network's own classes."""
        if self._head:
            return len(self.network.get_submodule(self._head).weight)
        return [m for m in self.network.modules() if isinstance(m, nn.Linear)][-1].out_features

    @property
    def classes(self) -> int:
        """The number of target classes."""
        return self.sources if self.label_map is None else len(self.label_map)

    def check_map(self) -> None:
        """Raises ValueError when the label map, read from a file, has no source classes."""
        mapping = self.label_map
        if mapping is None:
            return
        if mapping.dtype != torch.int64 or mapping.ndim != 1 or not len(mapping):
            raise ValueError(f"a label map of {mapping.dtype} {tuple(mapping.shape)}")
        if mapping.min() < 0 or mapping.max() >= self.sources:
            raise ValueError(f"a label map outside 0..{self.sources - 1}")
        if len(mapping.unique()) < len(mapping):
            raise ValueError("a label map that gives one source class to several classes")

    @contextmanager
    def plain(self) -> Iterator[None]:
        """Run the network in float32 by its own code within, whatever `use` set."""
        precision, self.precision = self.precision, Precision()
        try:
            with precision.uncompiled():
                yield
        finally:
            self.precision = precision

    def forward(self, x: Tensor, prompted: bool = False) -> Tensor:
        """(B, 3, h, h) in [0, 1] to (B, C). The prompted input has the canvas' size, not h."""
        logits = self.source_logits(x, prompted)
        return logits if self.label_map is None else logits[:, self.label_map]

    def source_logits(self, x: Tensor, prompted: bool = False) -> Tensor:
        """(B, 3, h, h) in [0, 1] to the logits of the network's own classes, (B, S)."""
        if prompted and self.prompt is not None:
            x = self.prompt(x)
        return self.precision.run(self.network, (x - self.mean) / self.std)

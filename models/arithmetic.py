"""What a network computes for one image, counted while it computes."""

from collections.abc import Callable, Mapping

from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode


def multiply_adds(run: Callable[[], object]) -> dict[str, int]:
    """Multiply-adds of each layer while `run` calls a classifier, by its name in the network."""
    counter = FlopCounterMode(display=False)
    with counter:
        run()
    return {name.partition(".network.")[2]: sum(flops.values()) // 2
            for name, flops in counter.get_flop_counts().items()}  # fmt: skip


def effective(macs: Mapping[str, int], name: str, mask: Tensor) -> int:
    """Those of a weight's layer, by its share of weights that stay."""
    return macs.get(name.rpartition(".")[0], 0) * int(mask.sum()) // max(1, mask.numel())

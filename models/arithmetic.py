"""What a network computes for one image, counted while it computes."""

from collections.abc import Callable

from torch.utils.flop_counter import FlopCounterMode


def multiply_adds(run: Callable[[], object]) -> dict[str, int]:
    """Multiply-adds of each layer while `run` calls a classifier, by its name in the network."""
    counter = FlopCounterMode(display=False)
    with counter:
        run()
    return {name.partition(".network.")[2]: sum(flops.values()) // 2
            for name, flops in counter.get_flop_counts().items()}  # fmt: skip


def effective(dense: int, kept: int, weights: int) -> int:
    """Those of weights that stay."""
    return dense * kept // max(1, weights)

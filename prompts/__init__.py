"""Visual prompts by name: `PROMPTS` is the registry, one row a kind."""

from collections.abc import Callable
from dataclasses import dataclass

from prompts.kinds import ExpandPrompt, FixPrompt, PadPrompt, RandomPrompt, VisualPrompt
from utils.config import flag, number

__all__ = ["PROMPTS", "PromptConfig", "Sizes", "VisualPrompt", "build_prompt", "has_prompt"]


@dataclass(frozen=True)
class Sizes:
    """Sizes in pixels: the image, the canvas, the frame of `pad`, the square of `fix`, `random`."""

    input: int
    output: int
    pad: int
    mask: int


PROMPTS: dict[str, Callable[[Sizes], VisualPrompt | None]] = {
    "pad": lambda sizes: PadPrompt(sizes.output, sizes.pad),
    "fix": lambda sizes: FixPrompt(sizes.output, sizes.mask),
    "random": lambda sizes: RandomPrompt(sizes.output, sizes.mask),
    "expand": lambda sizes: ExpandPrompt(sizes.output, sizes.input),
    "none": lambda sizes: None,
}


@dataclass(frozen=True)
class PromptConfig:
    """The flags of the prompt."""

    prompt_method: str = flag("pad", "kind of prompt", choices=tuple(PROMPTS))
    output_size: int | None = flag(
        None, "canvas of the prompted input, pixels (default: the network's, 224 or 16)",
        parse=number(int, 1, 4096))
    pad_size: int | None = flag(
        None, "width of the pad frame, pixels, 0 to half of the canvas; 0 trains no pixel "
        "(default: the network's, 16 of 224 or 2 of 16)", parse=number(int, 0, 2048))
    mask_size: int | None = flag(
        None, "side of the fix and random square, pixels, 1 to the canvas "
        "(default: 115 of 224, in proportion for other canvases)", parse=number(int, 1, 4096))


def has_prompt(kind: str) -> bool:
    """Whether `kind` is a prompt and not `none`."""
    return kind != "none"


def build_prompt(kind: str, sizes: Sizes) -> VisualPrompt | None:
    """A prompt that adds nothing yet (`pad`) or grey (the others); None for kind `none`.

    Raises ValueError for sizes that do not fit one another.
    """
    if has_prompt(kind) and sizes.input > sizes.output:
        raise ValueError(
            f"input_size {sizes.input} is larger than output_size {sizes.output}: "
            "the canvas must hold the image"
        )
    return PROMPTS[kind](sizes)

"""Visual prompts: learnable pixels on a canvas around or over the image (paper, section 3).

The kinds say where each shows on the canvas (its ablation). Each raises ValueError for a size that
does not fit the canvas, a square of `output_size` pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class InclusiveClamp(torch.autograd.Function):
    """clamp(x, 0, 1) with gradient 1 where 0 <= x <= 1, ends included, and 0 outside.

    torch's own clamp gives 0 at exactly 0 and 1, and then a frame over black pixels, which
    starts at exactly 0, never learns.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward((x >= 0) & (x <= 1))
        return x.clamp(0, 1)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (inside,) = ctx.saved_tensors
        return grad * inside


def being_recorded() -> bool:
    """Whether what is computed now goes into a CUDA graph."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


class VisualPrompt(nn.Module):
    """clamp(place(x) + pixels * region, 0, 1).

    `program` (3, H, H) is the parameter, zero at the start; H is `output_size`. A kind of prompt
    says where it shows (`region`) and how `program` becomes pixels (`pixels`). Outside the region
    the pixels get no gradient and stay 0.
    """

    region: Tensor

    def __init__(self, region: Tensor) -> None:
        """`region` is float (H, H), 1 where the prompt may show and 0 elsewhere."""
        super().__init__()
        self.output_size = len(region)
        self.program = nn.Parameter(torch.zeros(3, *region.shape))
        self.register_buffer("region", region, persistent=False)

    def pixels(self) -> Tensor:
        """What is added to the canvas, (3, H, H), before the region cuts it out."""
        return self.program

    def visible(self) -> Tensor:
        """Where the prompt shows in this forward pass, (H, H) of 0 and 1."""
        return self.region

    def move(self) -> None:
        """Choose where the next batch shows the prompt; most kinds stay where they are."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, h, h) in [0, 1] with h <= H, to (B, 3, H, H) in [0, 1]."""
        if not being_recorded():  # what replays it moves it
            self.move()
        return InclusiveClamp.apply(self.place(x) + self.pixels() * self.visible())

    def place(self, x: Tensor) -> Tensor:
        """Centre the image on a black canvas; an odd pixel of difference goes left and top."""
        before, after = margins(x.shape[-1], self.output_size)
        return F.pad(x, (before, after, before, after)) if before or after else x

    @torch.no_grad()
    def finished(self) -> Tensor:
        """What a forward pass adds to the canvas now, (3, H, H)."""
        return self.pixels() * self.visible()

    @torch.no_grad()
    def picture(self) -> Tensor:
        """The prompt at all places where it may show, (3, H, H) in [0, 1]; 0.5 adds nothing."""
        return (self.pixels() * self.region / 2 + 0.5).clamp(0, 1)


class SigmoidPrompt(VisualPrompt):
    """A prompt whose pixels are sigmoid(program): they start as grey, 0.5, not as nothing."""

    def pixels(self) -> Tensor:
        return self.program.sigmoid()


def margins(inner: int, outer: int) -> tuple[int, int]:
    """Pixels before and after an image of size `inner` centred on a canvas of size `outer`."""
    return (outer - inner + 1) // 2, (outer - inner) // 2


class PadPrompt(VisualPrompt):
    """A frame of `pad_size` pixels along the border of the canvas, added as it is: the default.

    It covers the border of an image as large as the canvas. 12 * p * (H - p) trainable values;
    p = 0 is the control without a trainable pixel.
    """

    def __init__(self, output_size: int, pad_size: int) -> None:
        if not 0 <= 2 * pad_size <= output_size:
            raise ValueError(
                f"pad_size {pad_size} is out of range: 0 to {output_size // 2}, half of the canvas"
            )
        super().__init__(1 - square(output_size, pad_size, output_size - 2 * pad_size))


class FixPrompt(SigmoidPrompt):
    """A square of `mask_size` pixels in the top left corner: 3 * mask_size^2 trainable values."""

    def __init__(self, output_size: int, mask_size: int) -> None:
        if not 1 <= mask_size <= output_size:
            raise ValueError(
                f"mask_size {mask_size} is out of range: 1 to {output_size}, the size of the canvas"
            )
        super().__init__(square(output_size, 0, mask_size))
        self.mask_size = mask_size


class ExpandPrompt(SigmoidPrompt):
    """The ring that the image leaves free: 3 * (H^2 - input_size^2) trainable values (ILM-VP)."""

    def __init__(self, output_size: int, input_size: int) -> None:
        if not 1 <= input_size < output_size:
            raise ValueError(
                f"input_size {input_size} leaves no ring for the expand prompt: "
                f"it must be from 1 to {output_size - 1}"
            )
        before, _ = margins(input_size, output_size)
        super().__init__(1 - square(output_size, before, input_size))


class RandomPrompt(FixPrompt):
    """Such a square, at a new place for every batch.

    3 * mask_size^2 of the 3 * H^2 values move in a step. The last offset is drawn too and a square
    as large as the canvas works; the authors' code leaves the one out and fails at the other.
    """

    def __init__(self, output_size: int, mask_size: int) -> None:
        super().__init__(output_size, mask_size)
        self._shown = self.region  # no buffer: states need not hold it
        self.region = torch.ones_like(self._shown)

    def move(self) -> None:
        """To one place for a whole batch, from torch's global CPU stream."""
        top, left = torch.randint(0, self.output_size - self.mask_size + 1, (2,)).tolist()
        if self._shown.device != self.region.device:
            self._shown = torch.empty_like(self.region)
        self._shown.zero_()[top : top + self.mask_size, left : left + self.mask_size] = 1

    def visible(self) -> Tensor:
        return self._shown

    def finished(self) -> Tensor:
        """In the top left corner, as any other place would be as good."""
        corner = square(self.output_size, 0, self.mask_size).to(self.region)
        return (self.pixels() * corner).detach()


def square(output_size: int, start: int, size: int) -> Tensor:
    """1 in a square of `size` pixels from `start` on both axes, else 0, (H, H)."""
    region = torch.zeros(output_size, output_size)
    region[start : start + size, start : start + size] = 1
    return region

"""The visual prompt: learnable pixels on a canvas around or over the image (paper, section 3)."""

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

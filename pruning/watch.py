"""Whether the numbers of a stage are finite: looked at in every half-step, without waiting."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from pruning.state import tensors_of
from utils.errors import NumericError

if TYPE_CHECKING:
    from pruning.training import Training


class Watch:
    """One flag on the device; only the CPU is asked at once."""

    def __init__(self, device: torch.device) -> None:
        self._finite = torch.ones((), dtype=torch.bool, device=device)

    @torch.no_grad()
    def look(self, training: "Training", loss: Tensor) -> None:
        """Note whether loss and moving parameters are finite.

        A norm is finite if all its terms are, unless it overflows: `require_finite` looks again.
        One norm over all tensors takes a few launches on an accelerator, a sum each takes many.
        """
        moving = [tensor for group in training.stage.groups for tensor in group.tensors]
        self._finite &= torch.isfinite(get_total_norm([loss.detach(), *moving]))
        if loss.device.type == "cpu":
            self.require_finite(training, loss)

    def require_finite(self, training: "Training", loss: Tensor | None = None) -> None:
        """Raise NumericError if anything was not finite since the last call; waits."""
        training.scale.require_steps()
        if self._finite:
            return
        self._finite.fill_(True)
        values = tensors_of(training) | ({} if loss is None else {"loss": loss.detach()})
        broken = [name for name, value in values.items() if not torch.isfinite(value).all()]
        if broken:
            step = max(training.step, 1) if loss is None else training.step + 1
            saved = "the last finite state is kept"
            if not any(training.saved):
                saved = "nothing was saved yet"
            raise NumericError(
                f"not finite: {', '.join(broken[::-1][:3])} at {training.place()}, step "
                f"{step}; {saved}: lower the learning rate"
            )

"""Loss scaling: float16 gradients too small for float16 are kept by scaling the loss.

The scale is a power of two, so that it leaves no trace in a gradient. It grows as long as nothing
overflows; a step whose gradients overflow is skipped (Micikevicius et al. 2018, section 3.2).
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from utils.errors import NumericError
from utils.together import whole_batch

MOST_SKIPPED = 10  # in a row: the scale is then a thousandth of what it was


class LossScale:
    """Backward pass and optimizer steps, with a scaled loss where that is `enabled`.

    On an accelerator nothing waits for the device, except on MPS, which has no fused optimizers.
    """

    def __init__(self, params: Iterable[nn.Parameter], enabled: bool) -> None:
        """`params` are all that get a gradient, also those that no optimizer holds."""
        self._steps = _Steps(dict.fromkeys(params))
        device = self._steps.param_groups[0]["params"][0].device
        self._scaler = torch.amp.GradScaler(device.type, enabled=enabled)
        self._in_a_row, self._most = torch.zeros(2, device=device)

    def backward(
        self, parts: Iterable[tuple[Tensor, Tensor, int]], seen: int
    ) -> tuple[Tensor, Tensor, Tensor | int]:
        """Gradients of the mean loss over `seen` images, unscaled, so that hooks see the true ones.

        A part is a mean loss, hits and images; its graph goes before the next is asked for. The
        gradients are those of the whole batch, of which each process has a share. Returns its loss,
        hits and images.
        """
        if self._scaler.is_enabled():  # what a recording that failed half-way has left
            self._scaler._per_optimizer_states.clear()
        sums = []
        for loss, hits, images in parts:
            loss = loss if images == seen else loss * (images / seen)
            self._scaler.scale(loss).backward()
            sums.append((loss.detach(), hits))
        loss, hits = (sum(values[1:], values[0]) for values in zip(*sums, strict=True))
        whole = whole_batch(self._steps.param_groups[0]["params"], loss, hits, seen)
        self._scaler.unscale_(self._steps)
        return whole

    def step(self, optimizers: Sequence[Optimizer]) -> None:
        """Step these optimizers, or none of them if a gradient of `backward` overflowed."""
        self._steps.optimizers = optimizers
        self._scaler.step(self._steps)
        self._scaler.update()
        if self._scaler.is_enabled():
            self._in_a_row.add_(1).mul_(self._steps.skipped)
            torch.maximum(self._most, self._in_a_row, out=self._most)

    def require_steps(self) -> None:
        """Raises NumericError after too many skipped steps in a row; waits for the device."""
        if self._scaler.is_enabled() and self._most >= MOST_SKIPPED:
            raise NumericError(
                f"{MOST_SKIPPED} steps in a row were skipped, since their gradients overflow in "
                "float16: use --amp bf16 or a lower learning rate"
            )

    def state(self) -> dict[str, Any]:
        """What a restart needs; empty when nothing is scaled."""
        scale = self._scaler.state_dict()
        return scale and scale | {"in_a_row": float(self._in_a_row)}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        if state:
            scale, steps = float(state["scale"]), int(state["_growth_tracker"])
            own = self._scaler.state_dict()
            self._scaler.load_state_dict(own | {"scale": scale, "_growth_tracker": steps})
            self._in_a_row.fill_(state["in_a_row"])


class _Steps(Optimizer):
    """All gradients and steps of one backward pass, as the one optimizer that GradScaler sees."""

    _step_supports_amp_scaling = True  # GradScaler gives `found_inf`; skipping is left to `step`
    found_inf: Tensor | None = None  # 1.0 if any gradient overflowed, else 0.0

    def __init__(self, params: Iterable[nn.Parameter]) -> None:
        super().__init__(params, {})
        self.optimizers: Sequence[Optimizer] = ()
        self.skipped: Tensor | None = None

    def step(self) -> None:
        """Step the optimizers unless a gradient overflowed."""
        self.skipped = self.found_inf
        for optimizer in self.optimizers:
            if getattr(optimizer, "_step_supports_amp_scaling", False):
                optimizer.found_inf = self.skipped  # a fused kernel skips by itself
                optimizer.step()
            elif not self.skipped:
                optimizer.step()

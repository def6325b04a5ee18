"""How the network is run: autocast, memory format, compilation, TF32.

Weights, scores, prompt, loss, optimizer states and the choice of the masks stay float32.
"""

import os
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.config import flag
from utils.errors import UsageError
from utils.ranks import world

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Graphs of one network: training and evaluation, two image sizes, whatever is trainable then.
MOST_GRAPHS = 32


@dataclass(frozen=True)
class Precision:
    """The flags, and the one place where they act on a forward pass."""

    amp: str = flag(
        "none", "precision of the network's layers (autocast); fp16 scales the loss",
        choices=("none", *DTYPES))
    channels_last: bool = flag(False, "keep activations in channels-last memory order")
    compile: bool = flag(False, "compile the network (torch.compile); needs a C++ compiler")
    tf32: bool = flag(
        False, "let NVIDIA GPUs round the factors of matrix products to TF32, as they do those of "
        "convolutions (torch's default, and the authors')")
    full_float32: bool = flag(False, "use TF32 nowhere, not in convolutions either")
    deterministic: str = flag(
        "on", "off lets a GPU use kernels whose last digits differ from run to run, some of them "
        "faster: two runs then differ, and so does one that was stopped",
        choices=("on", "off"))
    cuda_graphs: str = flag(
        "auto", "auto records the steps of an epoch as CUDA graphs on an NVIDIA GPU and replays "
        "them: the same bits, less time between kernels; off runs them one kernel at a time",
        choices=("auto", "off"), identity=False)

    sync_bn: bool = flag(
        False, "let BatchNorm see the whole batch of all GPUs under torchrun, not each its share")

    @property
    def scales_loss(self) -> bool:
        """Whether gradients would underflow without loss scaling."""
        return self.amp == "fp16"

    def begin(self, device: torch.device) -> None:
        """Set the process-wide switches, on or off, whatever they were before.

        Raises UsageError when `device` cannot run the network in this precision, or when flags
        contradict each other.
        """
        if self.tf32 and self.full_float32:
            raise UsageError("--tf32 and --full_float32 contradict each other: choose one")
        if self.sync_bn and (world() == 1 or device.type != "cuda"):
            raise UsageError("--sync_bn is for several GPUs under torchrun: drop it")
        torch.backends.cuda.matmul.allow_tf32 = self.tf32
        torch.backends.cudnn.allow_tf32 = not self.full_float32
        self._make_deterministic(device.type == "cuda" and self.deterministic == "on")
        if self.amp != "none" and not _autocasts(device, DTYPES[self.amp]):
            raise UsageError(
                f"--amp {self.amp} does not work on {device} here: choose another --amp or --device"
            )

    def _make_deterministic(self, wanted: bool) -> None:
        """Equal runs on a GPU give equal bits; torch warns of an operation that cannot."""
        if wanted:  # read when cuBLAS begins, at the first matrix product
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(wanted, warn_only=True)
        torch.backends.cudnn.deterministic = wanted
        for kind in ("flash", "mem_efficient", "cudnn"):  # their gradients differ from run to run
            getattr(torch.backends.cuda, f"enable_{kind}_sdp")(not wanted)
        # Nothing here reads memory before it is written: filling it first would only cost time.
        torch.utils.deterministic.fill_uninitialized_memory = not wanted

    def prepare(self, network: nn.Module) -> None:
        """Synchronise and compile `network` in place if asked to; its state-dict keys stay."""
        if self.sync_bn:
            _synchronise(network)
        if self.compile:
            import torch._dynamo

            # Past the limit torch goes on without compiling, silently.
            torch._dynamo.config.recompile_limit = MOST_GRAPHS
            network.compile()

    def run(self, network: nn.Module, x: Tensor) -> Tensor:
        """network(x): (B, 3, h, h) to (B, S); float32 logits whenever autocast is on.

        The weights stay contiguous in either memory format: those of a search are views of one
        flat tensor, and a layer's own conversion costs little beside its arithmetic.
        """
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        if self.compile:
            torch._dynamo.maybe_mark_dynamic(x, 0)  # an epoch's last batch is no graph of its own
        if self.amp == "none":
            return network(x)
        with torch.autocast(x.device.type, DTYPES[self.amp]):
            return network(x).float()

    def uncompiled(self) -> AbstractContextManager:
        """Within, compiled networks run by their own code, which has second derivatives."""
        return torch.compiler.set_stance("force_eager") if self.compile else nullcontext()


def _synchronise(network: nn.Module) -> None:
    if any(type(module).__module__.startswith("timm.") for module in network.modules()):
        from timm.layers import convert_sync_batchnorm  # keeps what timm's layers do besides

        convert_sync_batchnorm(network)
    else:
        nn.SyncBatchNorm.convert_sync_batchnorm(network)


def _autocasts(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a convolution and its gradient can be computed in `dtype`.

    Depending on the device torch raises an error or warns and goes on in float32.
    """
    weight = torch.ones(8, 8, 3, 3, device=device, requires_grad=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with torch.autocast(device.type, dtype):
                out = F.conv2d(weight.detach(), weight)
        out.float().sum().backward()
    except RuntimeError:
        return False
    return out.dtype == dtype

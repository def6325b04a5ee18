"""Half-steps as CUDA graphs: what a GPU did once it does again without Python between its kernels.

In every epoch the first half-step of each kind runs as it is written, which also warms up what
begins late; the second is recorded; the others are replays: the same kernels on the same memory,
with the same bits. What differs between steps lies in tensors that are changed in place. Learning
rates, label map and tallies are constants of an epoch, hence recordings for each.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache, partial

import torch
from torch import Size, Tensor, nn

from utils.errors import message_of, note

HalfStep = Callable[[int, str, Tensor, Tensor], None]  # half, view, images, labels
_refused: set[type] = set()  # networks that could not be recorded, which are not tried again


@contextmanager
def replayed(
    half_step: HalfStep, model: nn.Module, with_grad: Sequence[nn.Parameter]
) -> Iterator[HalfStep]:
    """The half-steps of an epoch: on an NVIDIA GPU recorded and replayed, else as they are.

    `with_grad` has all parameters that get gradients.
    """
    on_gpu = next(model.parameters()).device.type == "cuda"
    if not on_gpu or model.precision.cuda_graphs == "off" or type(model.network) in _refused:
        yield half_step
        return
    replay = Replay(half_step, model, with_grad, CudaGraphs())
    try:
        yield replay
    finally:
        replay.forget()


class Replay:
    """A half-step that is recorded when it comes for the second time; called like it."""

    def __init__(
        self, half_step: HalfStep, model: nn.Module, with_grad: Sequence[nn.Parameter],
        recorder: "CudaGraphs",
    ) -> None:  # fmt: skip
        self._half_step, self._model, self._recorder = half_step, model, recorder
        self._with_grad = with_grad
        self._replays: dict[tuple[int, str, Size], Callable[[], None] | None] = {}
        self._batches: dict[Size, tuple[Tensor, Tensor]] = {}  # the memory that replays read

    def __call__(self, half: int, view: str, images: Tensor, labels: Tensor) -> None:
        """One half-step on a batch; of a size that is new, as an epoch's last one is, eagerly."""
        kind = half, view, images.shape
        if kind not in self._replays or type(self._model.network) in _refused:
            if any(self._replays.values()):
                self.forget()  # or its memory would be taken twice
            self._replays[kind] = None
            with self._recorder.aside():
                self._half_step(half, view, images, labels)
            return
        if images.shape not in self._batches:
            self._batches[images.shape] = images.clone(), labels.clone()
        batch, drawn = self._batches[images.shape], torch.get_rng_state()
        for static, given in zip(batch, (images, labels), strict=True):
            static.copy_(given)
        if self._model.prompt is not None:
            self._model.prompt.move()
        if self._replays[kind] is None:
            run = partial(self._half_step, half, view, *batch)
            self._replays[kind] = self._recorded(run, drawn)
        else:
            self._replays[kind]()

    def _recorded(self, run: Callable[[], None], drawn: Tensor) -> Callable[[], None] | None:
        """A recording of `run`, which was run once; None when it cannot be recorded.

        It is run as it is then, from the random state `drawn`.
        """
        try:
            return self._recorder.record(run)
        except RuntimeError as error:
            kind = type(self._model.network)
            _refused.add(kind)
            note(f"{kind.__name__} cannot be recorded as a CUDA graph ({message_of(error)[:200]}): "
                 "its steps run one kernel at a time, slower for small images")
        self.forget()
        torch.set_rng_state(drawn)
        run()
        return None

    def forget(self) -> None:
        """Drop all recordings and their memory, gradients among it."""
        self._replays.clear()
        self._batches.clear()
        for param in self._with_grad:
            param.grad = None
        self._recorder.forget()


@cache
def _stream(device: int) -> torch.cuda.Stream:
    """The stream of all recordings: torch keeps memory for each one on which matrices multiply."""
    return torch.cuda.Stream(device)


class CudaGraphs:
    """CUDA graphs on a stream of their own; they share memory, since one runs after the other."""

    def __init__(self) -> None:
        self._device = torch.cuda.current_device()
        self._stream, self._pool = _stream(self._device), torch.cuda.graph_pool_handle()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Within, work runs on the stream that records, after and before that of the others."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """Run `run` once, and return what runs it again. Raises RuntimeError, having run nothing,
        when it waits for the host or cannot be recorded for another reason.

        Threads that prepare batches go on meanwhile, hence `thread_local`.
        """
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        options = {"pool": self._pool, "stream": self._stream, "capture_error_mode": "thread_local"}
        generator = torch.cuda.default_generators[self._device]
        before = generator.clone_state()
        try:  # a recording that fails stays on its stream, hence the outer one
            with torch.cuda.stream(current), torch.cuda.graph(graph, **options):
                run()
        except RuntimeError:
            self._recover(generator, before)
            raise
        graph.replay()
        return graph.replay

    def _recover(self, generator: torch.Generator, before: torch.Generator) -> None:
        """Torch 2.11 leaves generator and allocator recording when a recording fails; 2.14 neither.

        There the first call of the allocator raises, since nothing is left open.
        """
        generator.graphsafe_set_state(before)
        with suppress(RuntimeError, AttributeError):
            torch._C._cuda_endAllocateToPool(self._device, self._pool)
            torch._C._cuda_releasePool(self._device, self._pool)

    def forget(self) -> None:
        """Let the allocator have the memory of the recordings; none is replayed any more."""
        self._pool = torch.cuda.graph_pool_handle()
        torch.cuda.empty_cache()

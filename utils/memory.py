"""Memory of the process, as the C library hands it out."""

import ctypes

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Keep what tensors free for the next ones, instead of giving it back to the system.

    glibc maps large blocks anew for every tensor, and the kernel clears each page of them: at
    224 px a quarter of a training step on a CPU. Peak memory grows by a few per cent. Where the C
    library is another one, nothing happens.
    """
    try:
        change = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    change(_MMAP_MAX, 0)
    change(_TRIM_THRESHOLD, -1)

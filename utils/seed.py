"""Random streams: every draw is a function of a key such as (seed, density, stage, epoch).

Nothing depends on what was drawn before, so workers, caches, restarts and the order of the
densities cannot change a result.
"""

import hashlib

import torch


def key_seed(*key: object) -> int:
    """Map a key of ints, floats and strings to a seed in [0, 2^63), the same in every process."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*key: object) -> torch.Generator:
    """A fresh CPU generator seeded by the key."""
    return torch.Generator().manual_seed(key_seed(*key))


def reseed(device: torch.device, *key: object) -> None:
    """Restart the streams that layers draw from (dropout), on the CPU and on `device`.

    torch.manual_seed does the same for every device there is, and takes 0.2 ms.
    """
    seed = key_seed(*key)
    torch.random.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)  # of the current GPU, which `choose_device` made `device`
    elif device.type == "mps":
        torch.mps.manual_seed(seed)

"""Pruning methods by name: `METHODS` is the registry, one row a method."""

from pruning.acdc import ACDC
from pruning.bip import BIP
from pruning.dense import DENSE
from pruning.gmp import GMP
from pruning.grasp import GRASP
from pruning.hydra import HYDRA
from pruning.lth import LTH
from pruning.method import PRUNE_MODES, Method, Search
from pruning.omp import OMP
from pruning.random import RANDOM
from pruning.rigl import RIGL
from pruning.snip import SNIP
from pruning.synflow import SYNFLOW
from pruning.vpns import VPNS

__all__ = ["METHODS", "PRUNE_MODES", "Method", "Search"]

# In the paper's order, which is the report's; then what people compare with since.
METHODS: dict[str, Method] = {
    "vpns": VPNS,
    "hydra": HYDRA,
    "bip": BIP,
    "lth": LTH,
    "omp": OMP,
    "grasp": GRASP,
    "snip": SNIP,
    "synflow": SYNFLOW,
    "random": RANDOM,
    "gmp": GMP,
    "acdc": ACDC,
    "rigl": RIGL,
    "dense": DENSE,
}

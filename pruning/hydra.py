"""HYDRA (Sehwag et al. 2020): scores learned on the clean view, global threshold.

The original ranks each layer by itself; the paper's runs rank the whole network, as here.
"""

from pruning.granularity import KINDS
from pruning.method import Method
from pruning.scores import learn_masks

HYDRA = Method(learn_masks, learns=True, granularities=KINDS, curve=("#332288", "s"))

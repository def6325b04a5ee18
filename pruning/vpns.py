"""VPNs (arXiv 2312.01397): scores and prompt learned together, on a prompted and a clean view.

The search is `learn_masks` of scores.py, which HYDRA runs too. Here its views include the prompted
one, and the prompt's parameters are one more group. Which stages see the prompt is the prune mode.
"""

from pruning.granularity import KINDS
from pruning.method import Method
from pruning.scores import learn_masks

VPNS = Method(
    learn_masks,
    learns=True,
    granularities=KINDS,
    prune_mode="score+vp_weight+vp",
    curve=("#AA3377", "o"),
)

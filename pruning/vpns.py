"""VPNs (arXiv 2312.01397): scores and prompt learned together, on a prompted and a clean view.

This is HYDRA's search with the prompt's parameters as one more group; which stages see the prompt
is the method's prune mode.
"""

from pruning.method import Method
from pruning.scores import learn_masks

VPNS = Method(learn_masks, learns=True, prune_mode="score+vp_weight+vp", curve=("#AA3377", "o"))

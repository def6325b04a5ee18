"""One-shot magnitude pruning (OMP): |w| of the densely trained network; weights are rewound.

As in the paper's runs: the mask comes from a network trained for E epochs on the task, then
weights and BatchNorm go back to the pre-trained checkpoint before fine-tuning.
"""

from pruning.dense import dense_phase
from pruning.granularity import KINDS
from pruning.masks import Scores
from pruning.method import Method, Search, one_shot


def scores(search: Search) -> Scores:
    """|w| after the dense phase."""
    return {name: weight.abs() for name, weight in dense_phase(search).items()}


OMP = Method(one_shot(scores), granularities=KINDS, curve=("#E69F00", "v"))

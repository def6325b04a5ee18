"""The dense network: the reference of every curve, and the start of OMP and LTH."""

import torch
from torch import Tensor, nn

from pruning.masks import Masks, Scores, all_kept, prunable
from pruning.method import Method, Search, Tensors
from pruning.stage import Group, Stage, run_stage


def find_masks(search: Search) -> Masks:
    """Keep everything; fine-tuning does the rest."""
    search.remap()
    return all_kept(search.model.network)


def copy_of(module: nn.Module) -> Tensors:
    """A copy of a state dict."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def trained_weights(search: Search, name: str, masks: Masks, stage: Stage) -> Scores:
    """The prunable weights that `stage` would train, by layer name.

    The network is rewound to where it was (weights and BatchNorm); a prompt that took part stays
    tuned, as in the authors' runs. The training is done once for all densities and methods.
    """
    model, start = search.model, copy_of(search.model.network)

    def train() -> Tensors:
        run_stage(model, stage, search.data, search.log)
        return copy_of(model)

    trained = search.once(name, masks, train)
    model.network.load_state_dict(start)
    if search.prompted and model.prompt is not None:
        with torch.no_grad():
            model.prompt.program.copy_(trained["prompt.program"])
    device = next(model.parameters()).device
    return {n: _weight(trained, n).to(device) for n in prunable(model.network)}


def _weight(trained: Tensors, name: str) -> Tensor:
    return trained[f"network.{name}.weight"]


def dense_phase(search: Search) -> Scores:
    """Weights of the densely trained network (METHODS: OMP and LTH, E epochs)."""
    masks = all_kept(search.model.network)
    return trained_weights(search, "dense", masks, weight_stage(search, "dense"))


def weight_stage(search: Search, name: str, **options: object) -> Stage:
    """A training phase of all weights, and of the prompt where the search shows it."""
    weights = Group(tuple(search.model.network.parameters()), search.weight_optim)
    return Stage(
        name,
        search.epochs,
        groups=(weights, *search.prompt_groups()),
        views=search.views,
        any_density=True,
        before_epoch=search.before_epoch,
        **options,
    )


DENSE = Method(find_masks, only_density=1.0)

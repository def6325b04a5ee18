"""The dense network: the reference of every curve, and the start of OMP and LTH."""

import torch
from torch import nn

from pruning.masks import Masks, Scores, all_kept, prunable
from pruning.method import Method, Search, Tensors, no_phase
from pruning.stage import Group, Stage
from pruning.training import run_stage
from utils.tensors import load_into


def find_masks(search: Search) -> Masks:
    """Keep everything; fine-tuning does the rest."""
    return all_kept(search.model.network)


def dense_phase(search: Search) -> Scores:
    """The prunable weights of the densely trained network, by parameter name.

    The network is rewound to where it was, weights and BatchNorm. A prompt that took part stays
    tuned: every mask that comes from this phase starts with it, as in the authors' runs.
    """
    model = search.model
    trained = train_and_rewind(search, weight_stage(search, "dense"), all_kept(model.network))
    if search.prompted and model.prompt is not None:
        with torch.no_grad():
            model.prompt.program.copy_(trained["prompt.program"])
    return prunable_weights(model.network, trained)


def weight_stage(
    search: Search, name: str, any_density: bool = True, **options: object
) -> Stage:
    """A training phase of all weights, and of the prompt where the search shows it."""
    weights = Group(tuple(search.model.network.parameters()), search.weight_optim)
    return Stage(
        name,
        search.epochs,
        groups=(weights, *search.prompt_groups()),
        views=search.views,
        any_density=any_density,
        before_epoch=search.before_epoch,
        **options,
    )


def train_and_rewind(search: Search, stage: Stage, masks: Masks) -> Tensors:
    """The model's state at the end of `stage`; the model itself is put back to where it was.

    The stage runs once for all levels and methods that start it from the same model, label
    mapping and masks.
    """
    model, start = search.model, copy_of(search.model)
    seen = {n: t for n, t in start.items() if search.prompted or not n.startswith("prompt.")}

    def train() -> Tensors:
        run_stage(model, stage, search.data, search.log)
        return copy_of(model)

    was_training = model.training
    trained = search.once(stage.name, {**masks, **seen}, train, start)
    load_into(model, start)
    model.train(was_training)
    return trained


def copy_of(module: nn.Module) -> Tensors:
    """A copy of a state dict."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def prunable_weights(network: nn.Module, state: Tensors) -> Scores:
    """The prunable weights in a model's state, by parameter name, where the network is."""
    weights = prunable(network).items()
    return {name: state[f"network.{name}"].to(weight.device) for name, weight in weights}


DENSE = Method(find_masks, only_density=1.0, search_passes=no_phase, curve=("#000000", ""))

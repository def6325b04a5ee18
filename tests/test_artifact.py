"""Exported networks name the parameters that their masks are for."""

import json

import pytest
import torch
from conftest import tiny_model
from torch import nn

from models.artifact import export, masks_of
from models.classifier import PromptedClassifier

NAMES = ["0.weight", "3.weight", "7.weight"]


def exported():
    """Masks, tensors and values of a model with kept weights that are zero, as a file has them."""
    model = tiny_model()
    masks = {name: torch.rand(model.network.get_parameter(name).shape) > 0.6 for name in NAMES}
    masks["7.weight"][0] = True
    with torch.no_grad():
        model.network.get_parameter("7.weight")[0] = 0.0
    tensors, meta = export(model, masks)
    return masks, tensors, json.loads(json.dumps(meta))


def test_the_masks_come_back_under_the_names_in_the_file():
    masks, tensors, meta = exported()
    assert meta["masks"] == NAMES and list(meta["kept_zeros"]) == ["7.weight"]
    read = masks_of(tensors, meta)
    assert read.keys() == masks.keys()
    assert all(torch.equal(read[name], masks[name]) for name in masks)


def test_a_parameter_that_no_mask_is_for_has_none():
    masks, tensors, meta = exported()
    assert masks_of(tensors | {"table.weight": torch.zeros(3, 3)}, meta).keys() == masks.keys()


def test_the_projections_of_attention_have_a_mask():
    network = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2)})
    name = "attention.in_proj_weight"
    mask = torch.rand(12, 4) > 0.5
    read = masks_of(*export(PromptedClassifier(network), {name: mask}))
    assert list(read) == [name] and torch.equal(read[name], mask)


def test_files_of_the_first_version_name_layers_and_are_read():
    masks, tensors, meta = exported()
    old = {"kept_zeros": {"7": meta["kept_zeros"]["7.weight"]}}
    read = masks_of(tensors, old)
    assert read.keys() == masks.keys()
    assert all(torch.equal(read[name], masks[name]) for name in masks)


@pytest.mark.parametrize(
    "names", [None, [], "0.weight", {"0.weight": 1}, [0], [["0.weight"]], ["absent.weight"]]
)
def test_names_that_no_tensor_has_are_refused(names):
    _, tensors, meta = exported()
    with pytest.raises((ValueError, LookupError)):
        masks_of(tensors, meta | {"masks": names})

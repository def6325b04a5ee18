"""Numbers that are not finite stop a run at once, and the last finite state is kept.

An injection goes into one half-step of the second epoch of a stage, by way of the program.
"""

import json
import math
import re

import pytest
import torch
import torch.nn.functional as F
from cli import forked, hashes, only_run, run

from models.classifier import PromptedClassifier
from program import record
from pruning import training
from runfolder.states import States

FLAGS = ["--density_list", "0.1", "--epochs", 2, "--eval_every", 0]
FLAGS += ["--input_size", 4, "--output_size", 4]
SECOND_STEP_OF_EPOCH_2 = 7  # four half-steps an epoch, two a step


@pytest.fixture(autouse=True)
def plain_picture(monkeypatch):
    """Drawing takes as long as training here, and is tested elsewhere."""
    monkeypatch.setattr(record, "draw_run", lambda run: None)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return run(tmp_path_factory.mktemp("run"), *FLAGS)


def poison(tensor, bad):
    """Put one bad value into a tensor, in place."""
    with torch.no_grad():
        tensor.view(-1)[0] = bad


def into_loss(training, bad):
    plain = F.cross_entropy
    F.cross_entropy = lambda *words: plain(*words) * bad


def into_gradient(training, bad):
    """That of a weight in the network, from which the gradient of its score follows."""
    weight = (*training.stage.needs_grad, *training.with_grad)[0]
    weight.register_hook(lambda gradient: gradient * bad)


def into_moving(training, bad):
    """The scores of a search, the first weight of fine-tuning."""
    poison(training.with_grad[0], bad)


def into_prompt(training, bad):
    poison(training.model.prompt.program, bad)


PLACES = {
    "the loss of the search": ("search", into_loss, math.nan),
    "the gradient of a score": ("search", into_gradient, -math.inf),
    "a score": ("search", into_moving, math.nan),
    "the prompt in the search": ("search", into_prompt, math.inf),
    "the loss of fine-tuning": ("finetune", into_loss, math.inf),
    "the gradient of a weight": ("finetune", into_gradient, math.nan),
    "a weight": ("finetune", into_moving, -math.inf),
    "the prompt in fine-tuning": ("finetune", into_prompt, math.nan),
}


def inject(name, into, bad):
    """The second step of the second epoch of a stage meets a number that is not finite."""
    plain, seen = training.half_step, []

    def half_step(stage_training, *words):
        seen.extend([1] * (stage_training.stage.name == name))
        if len(seen) == SECOND_STEP_OF_EPOCH_2 and stage_training.stage.name == name:
            into(stage_training, bad)
        plain(stage_training, *words)

    training.half_step = half_step


@pytest.mark.parametrize("place", PLACES)
def test_a_number_that_is_not_finite_stops_the_run_in_its_step(tmp_path, place):
    name, into, bad = PLACES[place]
    failed = forked(tmp_path / "run", *FLAGS, before=lambda: inject(name, into, bad))
    assert failed.code == 3
    found = re.fullmatch(
        rf"not finite: .+ at density 0\.1, stage {name}, epoch 2, step 2; the last finite state "
        "is kept: lower the learning rate", failed.error,
    )  # fmt: skip
    assert found, failed.error
    folder = only_run(tmp_path / "run")
    state, problems = States(folder / "d0.1").newest()
    assert (state["stage"], state["epoch"], state["step"], problems) == (name, 1, 0, [])
    assert all(torch.isfinite(tensor).all() for tensor in state["tensors"].values())
    assert json.loads((folder / "run.json").read_text())["state"] == "failed"


def test_the_run_goes_on_from_its_last_finite_state(undisturbed, tmp_path):
    forked(tmp_path / "run", *FLAGS, before=lambda: inject("search", into_moving, math.nan))
    again = run(tmp_path / "run", *FLAGS)
    assert "continuing search after epoch 1" in again.out
    assert hashes(again.folder) == hashes(undisturbed.folder)


def test_a_number_that_is_not_finite_in_a_measurement_saves_no_model(tmp_path):
    def arm():
        plain = PromptedClassifier.forward

        def forward(model, images, prompted=False):
            return plain(model, images, prompted) * (1 if model.training else math.inf)

        PromptedClassifier.forward = forward

    failed = forked(tmp_path / "run", *FLAGS, before=arm)
    assert failed.code == 3 and "the network has diverged" in failed.error
    assert not list(only_run(tmp_path / "run").rglob("*.safetensors"))

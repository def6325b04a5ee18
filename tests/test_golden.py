"""Parity with a trajectory measured with the authors' arithmetic (tests/data/golden.md)."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import MemoryLog
from torch import Tensor, nn

from models.classifier import PromptedClassifier
from models.label_map import count_predictions, frequency_mapping
from prompts.kinds import PadPrompt
from pruning import selection
from pruning.masks import MaskKeeper, apply_masks, keep_top
from pruning.method import Search
from pruning.scores import initial_score, learn_masks
from pruning.selection import Threshold
from pruning.stage import Group, Stage
from pruning.training import run_stage
from utils.optim import Optim, OptimConfig, ScheduleConfig

GOLDEN = Path(__file__).parent / "data" / "vpns_pad_d30.npz"
LAYERS = ("0", "3", "8")
TOLERANCE = 1e-6


class Golden:
    """The file's arrays as tensors."""

    def __init__(self) -> None:
        self._file = np.load(GOLDEN, allow_pickle=False)
        self.meta: dict[str, Any] = json.loads(str(self._file["meta"]))

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(self._file[key])

    def folder(self, prefix: str) -> dict[str, Tensor]:
        names = [name for name in self._file.files if name.startswith(prefix + "/")]
        return {name.removeprefix(prefix + "/"): self[name] for name in names}


class GoldenView:
    """The fixed batches, in their order."""

    def __init__(self, golden: Golden, name: str, device: str) -> None:
        self.x = (golden[f"data/{name}_x"] / 255).to(device)
        self.y = golden[f"data/{name}_y"].to(device)

    def __len__(self) -> int:
        return len(self.x)

    def batches(self, *key: object, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.x, self.y.long(), strict=True)


class GoldenData:
    val = None

    def __init__(self, golden: Golden, device: str) -> None:
        views = (GoldenView(golden, name, device) for name in ("plain", "prompted"))
        self.clean, self.prompted = views
        self.test = self.clean


class LossLog(MemoryLog):
    """Does not measure, so that nothing but training touches the model."""

    def wants_test(self, epoch: int, epochs: int) -> bool:
        return False


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 20),
    )  # fmt: skip


def optim(meta: dict[str, Any], kind: str, rate: str) -> Optim:
    own = OptimConfig(meta[kind], meta[rate], meta["weight_decay"], "constant")
    return Optim(own, ScheduleConfig(momentum=meta["momentum"]))


class Trajectory:
    """Search and fine-tuning over the golden batches, and what they left behind."""

    def __init__(self, golden: Golden, losses: list[float], device: str = "cpu") -> None:
        meta = golden.meta
        self.model = PromptedClassifier(network(), PadPrompt(32, meta["pad_size"]))
        self.model.network.load_state_dict(golden.folder("init"))
        with torch.no_grad():
            self.model.prompt.program.copy_(golden["prompt/init"])
        self.model.label_map = golden["label_mapping"].long()
        self.model.to(device)
        self.data, self.log = GoldenData(golden, device), LossLog()
        self.masks = learn_masks(self.search(meta))
        self.search_losses = losses[:]
        self.scores = self.log.states[-1]["tensors"]["scores"]
        self.search_prompt = self.model.prompt.program.detach().clone()
        self.search_logits = self.logits()
        losses.clear()
        apply_masks(self.model.network, self.masks)
        run_stage(self.model, self.finetuning(meta), self.data, self.log)
        self.finetune_losses = losses[:]
        self.finetune_logits = self.logits()

    def search(self, meta: dict[str, Any]) -> Search:
        return Search(
            self.model, self.data, meta["density"], 1, ("prompted", "clean"),
            weight_optim=optim(meta, "finetune_optimizer", "weight_lr"),
            score_optim=optim(meta, "score_optimizer", "score_lr"),
            prompt_optim=optim(meta, "prompt_optimizer_prune", "prompt_lr_prune"),
            log=self.log,
        )  # fmt: skip

    def finetuning(self, meta: dict[str, Any]) -> Stage:
        weights = optim(meta, "finetune_optimizer", "weight_lr")
        prompt = optim(meta, "finetune_optimizer", "prompt_lr_finetune")
        return Stage(
            "finetune", 1,
            (
                Group(tuple(self.model.network.parameters()), weights),
                Group(tuple(self.model.prompt.parameters()), prompt),
            ),
            renew=MaskKeeper(self.model.network, self.masks),
        )  # fmt: skip

    @torch.no_grad()
    def logits(self) -> Tensor:
        self.model.eval()
        return self.model(self.data.clean.x[0])


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden()


@pytest.fixture(scope="module")
def thresholds() -> list[float]:
    return []


@pytest.fixture(scope="module")
def run(golden: Golden, thresholds: list[float]) -> Iterator[Trajectory]:
    """The whole trajectory, with every loss and threshold on the way."""
    losses: list[float] = []
    cross_entropy, find_threshold = F.cross_entropy, selection.find_threshold

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        value = cross_entropy(logits, labels)
        losses.append(value.item())
        return value

    def threshold(*args: Any, **options: Any) -> Threshold:
        found = find_threshold(*args, **options)
        thresholds.append(found.value)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "cross_entropy", loss)
        patch.setattr(selection, "find_threshold", threshold)
        torch.set_num_threads(1)
        yield Trajectory(golden, losses)


def flat(golden: Golden, prefix: str) -> Tensor:
    return torch.cat([golden[f"{prefix}/{name}"].flatten() for name in LAYERS])


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=0, atol=TOLERANCE)


def test_scores_start_as_the_authors(golden: Golden) -> None:
    for name in LAYERS:
        close(initial_score(golden[f"init/{name}.weight"]), golden[f"scores_init/{name}"])


def test_the_first_masks_are_equal(golden: Golden) -> None:
    scores = {name: golden[f"scores_init/{name}"].abs() for name in LAYERS}
    ours = keep_top(scores, golden.meta["density"])
    assert all(torch.equal(ours[name], golden[f"mask_before/{name}"]) for name in LAYERS)


def test_the_masks_after_the_search_are_equal(run: Trajectory, golden: Golden) -> None:
    assert all(torch.equal(run.masks[f"{n}.weight"], golden[f"mask_after/{n}"]) for n in LAYERS)


def test_the_search_moved_the_mask(golden: Golden) -> None:
    assert not torch.equal(flat(golden, "mask_before"), flat(golden, "mask_after"))


def test_losses_of_both_half_steps_of_the_search_match(run: Trajectory, golden: Golden) -> None:
    close(torch.tensor(run.search_losses), golden["prune/loss"])


def test_the_threshold_after_every_half_step_matches(
    run: Trajectory, golden: Golden, thresholds: list[float]
) -> None:
    theirs = golden["prune/threshold"]
    close(torch.tensor(thresholds[: len(theirs)]), theirs)


def test_scores_after_the_search_match(run: Trajectory, golden: Golden) -> None:
    close(run.scores, flat(golden, "prune/scores"))


def test_the_prompt_after_the_search_matches(run: Trajectory, golden: Golden) -> None:
    close(run.search_prompt, golden["prune/prompt"])


def test_logits_after_the_search_match(run: Trajectory, golden: Golden) -> None:
    close(run.search_logits, golden["prune/eval_logits"])


def test_losses_of_fine_tuning_match(run: Trajectory, golden: Golden) -> None:
    close(torch.tensor(run.finetune_losses), golden["finetune/loss"])


def test_the_prompt_after_fine_tuning_matches(run: Trajectory, golden: Golden) -> None:
    close(run.model.prompt.program.detach(), golden["finetune/prompt"])


def test_weights_and_statistics_after_fine_tuning_match(run: Trajectory, golden: Golden) -> None:
    ours = run.model.network.state_dict()
    for key, theirs in golden.folder("finetune/state").items():
        name, kind = key.rsplit(".", 1)
        pruned = kind == "weight" and name in LAYERS
        close(ours[key], theirs * golden[f"mask_after/{name}"] if pruned else theirs)


def test_logits_after_fine_tuning_match(run: Trajectory, golden: Golden) -> None:
    close(run.finetune_logits, golden["finetune/eval_logits"])


def test_the_frequency_mapping_is_equal(golden: Golden) -> None:
    class Logits(nn.Module):
        def source_logits(self, x: Tensor, prompted: bool) -> Tensor:
            return x

    batches = zip(golden["flm/logits"].split(100), golden["flm/labels"].split(100), strict=True)
    counts = count_predictions(Logits(), batches, 8, prompted=False)
    assert torch.equal(frequency_mapping(counts), golden["flm/mapping"])

"""The benchmarks: the reference is the authors' arithmetic, and each command prints its keys."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MemoryLog, TinyData, tiny_model
from torch import Tensor, nn

from benchmarks import data as data_benchmark
from benchmarks import epoch, gpu_table, reference, selection, step
from benchmarks.timing import Turns, print_result, ratios
from data.picture import decode
from models.classifier import PromptedClassifier
from prompts.kinds import PadPrompt
from pruning.method import Search
from pruning.scores import learn_masks
from utils.optim import Optim, OptimConfig

GOLDEN = Path(__file__).parent / "data" / "vpns_pad_d30.npz"
LAYERS = ("0", "3", "8")
RATIO = {"median", "min", "max"}


class Golden:
    """The measured trajectory (tests/data/golden.md), and the reference's on the same data."""

    def __init__(self) -> None:
        self.file = np.load(GOLDEN, allow_pickle=False)
        self.meta: dict[str, Any] = json.loads(str(self.file["meta"]))
        network = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 20),
        )  # fmt: skip
        start = [name for name in self.file.files if name.startswith("init/")]
        network.load_state_dict({name.removeprefix("init/"): self[name] for name in start})
        prompt = PadPrompt(32, self.meta["pad_size"])
        self.model = PromptedClassifier(reference.add_scores(network), prompt)
        self.model.label_map = self["label_mapping"].long()
        with torch.no_grad():
            prompt.program.copy_(self["prompt/init"])
        lr = self.meta["score_lr"]
        self.search_losses = self.train(reference.search(self.model, self.meta["density"], lr))
        scores = reference.score_masks(network).items()
        self.scores = {name: mask.scores.detach().clone() for name, mask in scores}
        self.masks = reference.masks(network)
        self.prompt = prompt.program.detach().clone()
        self.tune_losses = self.train(reference.finetuning(self.model))
        self.model.eval()
        with torch.no_grad():
            self.logits = self.model(self["data/plain_x"][0] / 255)

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(self.file[key])

    def train(self, phase: reference.Phase) -> list[float]:
        self.model.train()
        losses: list[float] = []
        for number in range(self.meta["iterations"]):
            pair = [
                (self[f"data/{view}_x"][number] / 255, self[f"data/{view}_y"][number].long())
                for view in ("prompted", "plain")
            ]
            losses += phase.iteration(*pair)
        return losses


@pytest.fixture(scope="module")
def golden() -> Golden:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    measured = Golden()
    torch.set_num_threads(threads)
    return measured


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=0, atol=1e-6)


def result(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The values of the RESULT line, which must be the last one."""
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("RESULT ")
    return json.loads(last.removeprefix("RESULT "))


def test_the_reference_reproduces_the_losses(golden: Golden) -> None:
    close(torch.tensor(golden.search_losses), golden["prune/loss"])
    close(torch.tensor(golden.tune_losses), golden["finetune/loss"])


def test_the_reference_reproduces_the_scores(golden: Golden) -> None:
    for name in LAYERS:
        close(golden.scores[f"{name}.weight"], golden[f"prune/scores/{name}"])


def test_the_reference_reproduces_the_masks(golden: Golden) -> None:
    assert all(torch.equal(golden.masks[f"{n}.weight"], golden[f"mask_after/{n}"]) for n in LAYERS)


def test_the_reference_reproduces_the_prompt_and_the_logits(golden: Golden) -> None:
    close(golden.prompt, golden["prune/prompt"])
    close(golden.logits, golden["finetune/eval_logits"])


def test_the_masks_of_the_reference_are_ours() -> None:
    data, ours = TinyData(), tiny_model()
    adam = Optim(OptimConfig("adam", 1e-2, 1e-4, "constant"))
    views, log = ("prompted", "clean"), MemoryLog()
    found = learn_masks(Search(ours, data, 0.3, 1, views, adam, adam, adam, log))
    model = tiny_model().train()
    reference.add_scores(model.network)
    phase = reference.search(model, 0.3, 1e-2)
    key = (*log.key, "search", 0)
    for pair in zip(data.prompted.batches(*key), data.clean.batches(*key), strict=True):
        phase.iteration(*pair)
    theirs = reference.masks(model.network)
    assert all(torch.equal(found[name], theirs[name]) for name in found)


def test_a_scored_layer_is_the_plain_one_before_it_has_a_threshold() -> None:
    plain = nn.Conv2d(4, 6, 3, padding=1, groups=2)
    twin = reference.add_scores(copy.deepcopy(plain))
    x = torch.rand(2, 4, 5, 5)
    torch.testing.assert_close(twin(x), plain(x))


def test_contenders_take_turns_in_both_orders() -> None:
    calls: list[str] = []
    turns = Turns({"a": lambda: calls.append("a"), "b": None}, repeats=1)
    for _ in turns:
        calls.append("b")
    assert calls == ["b", "a", "a", "b"]


def test_a_loop_gets_as_many_steps_as_announced() -> None:
    turns = Turns({"a": lambda: None, "b": None}, repeats=4, iterations=4)
    assert len(list(turns)) == turns.steps == 20


def test_a_ratio_is_of_neighbouring_measurements() -> None:
    assert ratios([2, 9, 8], [1, 3, 2]) == {"median": 3, "min": 2, "max": 4}


def test_the_result_line_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    print_result(search=ratios([1], [2]))
    assert result(capsys) == {"search": {"median": 0.5, "min": 0.5, "max": 0.5}}


TINY_STEP = ["--network", "resnet20", "--size", "8", "--batch", "4", "--iterations", "1",
             "--repeats", "2", "--threads", "1"]  # fmt: skip


def test_the_step_benchmark_prints_a_ratio_for_every_contender(
    capsys: pytest.CaptureFixture[str],
) -> None:
    step.main(TINY_STEP)
    found = result(capsys)
    for name in ("search", "finetune", "eval"):
        assert set(found[name]) == set(found[f"reference_{name}"]) == RATIO


def test_the_table_of_the_step_benchmark_has_a_range_for_every_ratio(
    capsys: pytest.CaptureFixture[str],
) -> None:
    step.main(TINY_STEP)
    rows = capsys.readouterr().out.splitlines()[1:-1]
    ranges = [re.search(r" [0-9.]+ \([0-9.]+ - [0-9.]+\)$", row) for row in rows]
    assert len(rows) == 10
    assert all(
        bool(found) != row.startswith("dense ") for row, found in zip(rows, ranges, strict=True)
    )


def test_freed_memory_is_kept_before_anything_is_built(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []
    build = step.build_model
    monkeypatch.setattr(step, "keep_freed_memory", lambda: calls.append("keep"))
    monkeypatch.setattr(step, "build_model", lambda *of: calls.append("build") or build(*of))
    step.main([*TINY_STEP, "--keep_memory"])
    assert calls == ["keep", "build"] and result(capsys)["keep_memory"] is True


def test_the_data_benchmark_prints_ratios_with_and_without_cache(
    capsys: pytest.CaptureFixture[str],
) -> None:
    data_benchmark.main(["--sizes", "8", "--images", "16", "--batch", "8", "--repeats", "1"])
    found = result(capsys)
    assert set(found["cached_8"]) == set(found["uncached_8"]) == RATIO


def test_the_epoch_benchmark_prints_a_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    epoch.main(["--network", "resnet20", "--size", "8", "--batch", "4", "--images", "9"])
    assert set(result(capsys)["epoch_over_steps"]) == RATIO


def test_the_selection_benchmark_prints_milliseconds(capsys: pytest.CaptureFixture[str]) -> None:
    selection.main(["--counts", "100,200", "--repeats", "1"])
    found = result(capsys)["milliseconds"]
    assert set(found) == {"100", "200"} and set(found["100"]) >= {"ours 0.1", "topk 0.1", "sort"}


def test_the_table_of_a_gpu_has_a_row_a_step_and_names_what_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step.main(TINY_STEP)
    (tmp_path / "step-8.log").write_text(capsys.readouterr().out)
    (tmp_path / "data.log").write_text("FAILED with exit code 3\n")
    text = gpu_table.report(tmp_path)
    assert re.search(r"^\| step-8 \| resnet20, 8 px, batch 4 \| \d", text, re.MULTILINE)
    assert "data:\n\n```\nFAILED with exit code 3" in text


def test_both_loaders_show_the_same_file(tmp_path: Path) -> None:
    part = data_benchmark.random_part(1, tmp_path)
    pixels, label = data_benchmark.loader(part, 29, 1).dataset[0]  # cut from 32 px, as the file has
    whole = decode(part.images.path(0)) / 255
    cuts = [whole[:, y : y + 29, x : x + 29] for y in range(4) for x in range(4)]
    assert any(torch.equal(pixels, view) for cut in cuts for view in (cut, cut.flip(2)))
    assert label == 0

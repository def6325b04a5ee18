"""What levels and methods share is computed once, read back the same, and never wrong."""

import os
from pathlib import Path
from typing import Any

import cli
import pytest
import torch
from conftest import MemoryLog, TinyData, TinyView, tiny_model
from searches import BOTH, VIEWS, Found, find, flat
from torch import Tensor

from program.folder import shared_settings
from program.settings import read_config
from pruning.dense import train_and_rewind, weight_stage
from pruning.masks import all_kept
from runfolder.shared import Shared
from utils.checkpoint import load_model, save_model
from utils.errors import Interrupted, NumericError

SETTINGS = {"seed": 7, "weight_lr": 0.1, "views": ("clean",)}


def shared_find(folder: Path, name: str, settings: dict = SETTINGS, **changes: Any) -> Found:
    """A search whose shared results lie in `folder`."""
    log = changes.pop("log", None) or MemoryLog()
    return find(name, log=log, once=Shared(folder, settings, log).once, **changes)


def stages(found: Found) -> list[str]:
    """The stages that were trained and not read."""
    return [row["stage"] for row in found.log.rows]


def names(folder: Path) -> list[str]:
    return sorted(path.name.rsplit("-", 1)[0] for path in folder.glob("*.safetensors"))


def same_state(one: Found, other: Found) -> bool:
    first, second = one.model.state_dict(), other.model.state_dict()
    return all(torch.equal(first[key], second[key]) for key in first)


class Made:
    """A `make` that counts its calls and spends passes."""

    def __init__(self, log: MemoryLog, value: float = 1.0) -> None:
        self.log, self.value, self.calls = log, value, 0

    def __call__(self) -> dict[str, Tensor]:
        self.calls += 1
        self.log.add_passes(3)
        return {"a": torch.full((2, 3), self.value), "steps": torch.tensor(5)}


@pytest.fixture
def log() -> MemoryLog:
    return MemoryLog()


@pytest.fixture
def shared(tmp_path: Path, log: MemoryLog) -> Shared:
    return Shared(tmp_path / "shared", SETTINGS, log)


MASKS = {"0": torch.tensor([[True, False, True]])}


@pytest.mark.parametrize("like", [{"b": torch.ones(2, 3)}, {"a": torch.ones(2, 3).int()}])
def test_a_file_of_something_else_is_made_again(shared: Shared, log: MemoryLog, like) -> None:
    make = Made(log)
    shared.once("dense", MASKS, make)
    shared.once("dense", MASKS, make, like)
    assert make.calls == 2


def test_a_file_without_its_passes_is_made_again(shared: Shared, log: MemoryLog, tmp_path) -> None:
    make = Made(log)
    shared.once("dense", MASKS, make)
    (path,) = tmp_path.rglob("*.safetensors")
    save_model(path, load_model(path)[0], {"passes": "x"})
    shared.once("dense", MASKS, make)
    assert make.calls == 2


def test_a_result_is_made_once(shared: Shared, log: MemoryLog) -> None:
    make = Made(log)
    first, second = (shared.once("dense", MASKS, make) for _ in range(2))
    assert make.calls == 1
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_passes_count_also_when_a_result_is_read(shared: Shared, log: MemoryLog) -> None:
    log.add_passes(10)
    for _ in range(3):
        shared.once("dense", MASKS, Made(log))
    assert log.passes == 10 + 3 * 3


def test_another_name_is_another_result(shared: Shared, log: MemoryLog) -> None:
    make = Made(log)
    shared.once("dense", MASKS, make)
    shared.once("round-0.8", MASKS, make)
    assert make.calls == 2


@pytest.mark.parametrize(
    "given",
    [
        {"0": torch.tensor([[True, True, False]])},
        {"0": torch.tensor([[True], [False], [True]])},
        {"1": MASKS["0"]},
        {**MASKS, "label_map": torch.tensor([3, 1])},
        {"0": MASKS["0"].float()},
        {},
    ],
    ids=["value", "shape", "name", "more", "kind", "fewer"],
)
def test_other_tensors_are_another_result(
    shared: Shared, log: MemoryLog, given: dict[str, Tensor]
) -> None:
    make = Made(log)
    shared.once("dense", MASKS, make)
    shared.once("dense", given, make)
    assert make.calls == 2


def test_the_order_of_the_tensors_does_not_matter(shared: Shared, log: MemoryLog) -> None:
    make, more = Made(log), torch.rand(3)
    shared.once("dense", {**MASKS, "b": more}, make)
    shared.once("dense", {"b": more, **MASKS}, make)
    assert make.calls == 1


@pytest.mark.parametrize("change", [{"seed": 8}, {"weight_lr": 0.2}, {"epochs": 3}])
def test_other_settings_are_another_result(
    tmp_path: Path, log: MemoryLog, change: dict[str, Any]
) -> None:
    make = Made(log)
    for settings in (SETTINGS, SETTINGS | change):
        Shared(tmp_path, settings, log).once("dense", MASKS, make)
    assert make.calls == 2


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def lose(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [flip, cut, empty, lose])
def test_a_damaged_file_is_made_again(tmp_path: Path, log: MemoryLog, damage: Any) -> None:
    shared, make = Shared(tmp_path, SETTINGS, log), Made(log)
    shared.once("dense", MASKS, make)
    damage(next(tmp_path.glob("*.safetensors")))
    assert torch.equal(shared.once("dense", MASKS, make)["a"], torch.ones(2, 3))
    shared.once("dense", MASKS, make)
    assert make.calls == 2 and log.passes == 9


def test_what_failed_leaves_no_file(tmp_path: Path, log: MemoryLog) -> None:
    def fail() -> dict[str, Tensor]:
        raise NumericError("the loss is nan")

    with pytest.raises(NumericError):
        Shared(tmp_path, SETTINGS, log).once("dense", MASKS, fail)
    assert not list(tmp_path.iterdir())


def test_the_dense_phase_is_trained_once_for_two_densities(tmp_path: Path) -> None:
    first = shared_find(tmp_path, "omp", density=0.5)
    second = shared_find(tmp_path, "omp", density=0.1)
    assert (stages(first), stages(second)) == (["dense"], [])


def test_omp_and_lth_share_the_dense_phase(tmp_path: Path) -> None:
    shared_find(tmp_path, "omp", density=0.5)
    assert stages(shared_find(tmp_path, "lth", density=0.6)) == ["round-0.8", "round-0.64"]


@pytest.mark.parametrize("views", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("name", ["omp", "lth"])
def test_reading_gives_the_masks_and_the_model_that_training_gives(
    tmp_path: Path, name: str, views: tuple[str, ...]
) -> None:
    made, read = (shared_find(tmp_path, name, views=views, density=0.5) for _ in range(2))
    assert stages(made) and not stages(read)
    assert torch.equal(flat(made.masks), flat(read.masks)) and same_state(made, read)
    assert made.log.passes == read.log.passes > 0


@pytest.mark.parametrize("views", VIEWS.values(), ids=VIEWS)
def test_a_level_does_not_depend_on_who_trained_the_dense_phase(
    tmp_path: Path, views: tuple[str, ...]
) -> None:
    alone = shared_find(tmp_path / "alone", "omp", views=views, density=0.1)
    shared_find(tmp_path / "both", "lth", views=views, density=0.5)
    after = shared_find(tmp_path / "both", "omp", views=views, density=0.1)
    assert torch.equal(flat(alone.masks), flat(after.masks)) and same_state(alone, after)


def test_rounds_are_shared_by_searches_with_other_last_densities(tmp_path: Path) -> None:
    shared_find(tmp_path, "lth", density=0.6)
    assert stages(shared_find(tmp_path, "lth", density=0.5)) == ["round-0.512"]


def test_other_weights_at_the_start_are_another_dense_phase(tmp_path: Path) -> None:
    shared_find(tmp_path, "omp")
    assert stages(shared_find(tmp_path, "omp", model=tiny_model(seed=1))) == ["dense"]


def test_a_round_depends_on_its_masks_where_a_kept_weight_is_zero(tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.network[3].weight.zero_()
    search = shared_find(tmp_path, "dense", model=model).search
    masks, stage = all_kept(model.network), weight_stage(search, "round")
    train_and_rewind(search, stage, masks)
    train_and_rewind(search, stage, masks | {"3.weight": ~masks["3.weight"]})
    assert [row["stage"] for row in search.log.rows] == ["round", "round"]


def test_another_label_mapping_is_another_dense_phase(tmp_path: Path) -> None:
    shared_find(tmp_path, "omp")
    model = tiny_model()
    model.label_map = torch.tensor([5, 0, 3, 2])
    assert stages(shared_find(tmp_path, "omp", model=model)) == ["dense"]


def test_a_prompt_that_takes_no_part_does_not_matter(tmp_path: Path) -> None:
    shared_find(tmp_path, "omp")
    model = tiny_model()
    model.prompt = None
    assert not stages(shared_find(tmp_path, "omp", model=model))


def test_a_prompt_that_takes_part_does(tmp_path: Path) -> None:
    shared_find(tmp_path, "omp", views=BOTH)
    model = tiny_model()
    with torch.no_grad():
        model.prompt.program += 0.1
    assert stages(shared_find(tmp_path, "omp", views=BOTH, model=model)) == ["dense"]


def test_the_files_say_what_they_hold(tmp_path: Path) -> None:
    shared_find(tmp_path, "lth", density=0.6)
    assert names(tmp_path) == ["dense", "round-0.64", "round-0.8"]


def test_an_interrupted_dense_phase_goes_on_where_it_stopped(tmp_path: Path) -> None:
    whole = shared_find(tmp_path / "whole", "omp", epochs=3)
    stopped = MemoryLog(stop_after=5)
    with pytest.raises(Interrupted):
        shared_find(tmp_path / "parts", "omp", epochs=3, log=stopped)
    assert not [*(tmp_path / "parts").iterdir()]
    again = MemoryLog(state=stopped.states[-1])
    resumed = shared_find(tmp_path / "parts", "omp", epochs=3, log=again)
    assert torch.equal(flat(whole.masks), flat(resumed.masks)) and same_state(whole, resumed)
    assert resumed.log.passes == whole.log.passes and len(again.rows) == 2


def test_an_interrupted_round_goes_on_where_it_stopped(tmp_path: Path) -> None:
    whole = shared_find(tmp_path / "whole", "lth", epochs=2, density=0.6)
    stopped = MemoryLog(stop_after=2 * 3 * 2 + 4)  # dense, one round, four steps of the next
    with pytest.raises(Interrupted):
        shared_find(tmp_path / "parts", "lth", epochs=2, density=0.6, log=stopped)
    assert names(tmp_path / "parts") == ["dense", "round-0.8"]
    again = MemoryLog(state=stopped.states[-1])
    resumed = shared_find(tmp_path / "parts", "lth", epochs=2, density=0.6, log=again)
    assert torch.equal(flat(whole.masks), flat(resumed.masks)) and same_state(whole, resumed)
    assert [(row["stage"], row["epoch"]) for row in again.rows] == [("round-0.64", 2)]


def test_a_mapping_that_is_renewed_each_epoch_does_not_spoil_the_reuse(tmp_path: Path) -> None:
    """As `ilm` does it: the mapping at the end of a stage is not what the next one starts with."""

    def run() -> Found:
        model = tiny_model()

        def remap() -> None:
            model.label_map = torch.tensor([5, 0, 3, 1])

        def before_epoch() -> None:
            model.label_map = torch.tensor([1, 0, 2, 5])

        return shared_find(
            tmp_path, "lth", model=model, remap=remap, before_epoch=before_epoch, density=0.6
        )

    made, read = run(), run()
    assert stages(made) and not stages(read)
    assert torch.equal(flat(made.masks), flat(read.masks)) and same_state(made, read)


def test_other_data_need_other_settings(tmp_path: Path) -> None:
    """The images are no part of the hash: the program puts their fingerprint in the settings."""
    shared_find(tmp_path, "omp", SETTINGS | {"data": "one"})
    other = TinyData(clean=TinyView("other"))
    assert stages(shared_find(tmp_path, "omp", SETTINGS | {"data": "two"}, data=other)) == ["dense"]


def settings_of(*words: str) -> dict[str, Any]:
    config, _ = read_config(["--dataset", "digits", "--network", "resnet20", *words])
    return shared_settings(config, "fingerprint")


@pytest.mark.parametrize(
    "words",
    [
        "--prune_method lth", "--density_list 0.3,0.2", "--score_lr 0.5", "--score_vp_lr 0.5",
        "--weight_vp_lr 0.5", "--pad_size 1", "--prompt_method none", "--post_prompt finetuned",
        "--workers 1",
    ],
)  # fmt: skip
def test_flags_that_an_unprompted_dense_phase_does_not_see_share_it(words: str) -> None:
    base = settings_of("--prune_method", "omp")
    assert settings_of("--prune_method", "omp", *words.split()) == base


@pytest.mark.parametrize(
    "words",
    [
        "--seed 8", "--epochs 3", "--weight_lr 0.5", "--momentum 0.5", "--batch_size 16",
        "--label_mapping_mode ilm", "--train_images 100", "--val_fraction 0.1",
        "--prune_mode score+vp_weight+vp", "--prune_mode weight+vp_score",
    ],
)  # fmt: skip
def test_flags_that_change_the_dense_phase_do_not_share_it(words: str) -> None:
    base = settings_of("--prune_method", "omp")
    assert settings_of("--prune_method", "omp", *words.split()) != base


@pytest.mark.parametrize("words", ["--pad_size 1", "--score_vp_lr 0.5", "--prompt_method fix"])
@pytest.mark.parametrize("mode", ["score+vp_weight+vp", "score+vp_weight"])
def test_a_prompted_dense_phase_depends_on_the_prompt(mode: str, words: str) -> None:
    base = ("--prune_method", "omp", "--prune_mode", mode)
    assert settings_of(*base, *words.split()) != settings_of(*base)


def test_a_mapping_renewed_behind_the_prompt_depends_on_the_prompt() -> None:
    base = ("--prune_mode", "weight+vp_score", "--label_mapping_mode", "ilm")
    assert settings_of(*base, "--pad_size", "1") != settings_of(*base)


def test_a_level_is_the_same_file_whether_its_dense_phase_was_computed_or_read(
    tmp_path: Path,
) -> None:
    words = ("--prune_method", "omp", "--prune_mode", "score+vp_weight+vp", "--eval_every", 0)
    alone = cli.run(tmp_path / "alone", *words, "--density_list", "0.1").folder
    both = cli.run(tmp_path / "both", *words, "--density_list", "0.5,0.1").folder
    assert [stage for density, stage, _ in cli.metrics(both) if density == 0.1] == ["finetune"]
    assert [stage for _, stage, _ in cli.metrics(alone)] == ["dense", "finetune"]
    model = Path("d0.1", "model.safetensors")
    assert (alone / model).read_bytes() == (both / model).read_bytes()


def test_of_two_runs_that_need_a_result_at_once_one_makes_it_and_the_other_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runfolder.shared.PAUSE", 0.01)
    children = []
    for number in (1, 2):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                trained = stages(shared_find(tmp_path / "shared", "omp", epochs=3))
                (tmp_path / f"stages-{number}").write_text(" ".join(trained))
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    made = [(tmp_path / f"stages-{number}").read_text().split() for number in (1, 2)]
    assert sorted(map(len, made)) == [0, 3]
    assert [path.suffix for path in (tmp_path / "shared").iterdir()].count(".lock") == 0

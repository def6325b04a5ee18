"""Files that are whole or absent, states that survive damage, and models that come back exactly."""

import errno
import hashlib
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SIZE, MemoryLog, TinyData, tiny_model
from safetensors.torch import save as save_safetensors
from torch import Tensor

from models.artifact import export, masks_of, restore
from models.classifier import PromptedClassifier
from prompts.kinds import PadPrompt
from pruning.masks import apply_masks, keep_top, prunable
from pruning.stage import Group, Stage
from pruning.training import run_stage
from runfolder.states import States
from utils.checkpoint import (
    load_model,
    pack_tensor,
    read_meta,
    save_model,
    side_car,
    unpack_tensor,
)
from utils.errors import VPNsError
from utils.files import atomic_write, sha256_file, write_problem
from utils.optim import Optim, OptimConfig


def state(number: int) -> dict[str, Any]:
    return {"stage": "search", "number": number, "tensors": {"scores": torch.arange(50.0) + number}}


def saved(folder: Path, count: int) -> States:
    states = States(folder)
    for number in range(1, count + 1):
        states.save(state(number))
    return states


def cut(share: float) -> Callable[[bytes], bytes]:
    return lambda data: data[: int(share * len(data))]


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


DAMAGE = [cut(0), cut(0.01), cut(0.5), cut(0.99), flip]
DAMAGE_NAMES = ["empty", "1%", "50%", "99%", "bit"]


def damage(path: Path, how: Callable[[bytes], bytes]) -> None:
    path.write_bytes(how(path.read_bytes()))


def test_the_newest_two_states_are_kept(tmp_path: Path) -> None:
    saved(tmp_path, 5)
    names = {"state-4.pt", "state-4.pt.sha256", "state-5.pt", "state-5.pt.sha256"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_the_newest_is_by_number_not_by_name(tmp_path: Path) -> None:
    found, _ = saved(tmp_path, 11).newest()
    assert found["number"] == 11


def test_a_state_comes_back(tmp_path: Path) -> None:
    found, problems = saved(tmp_path, 1).newest()
    assert torch.equal(found["tensors"]["scores"], torch.arange(50.0) + 1) and problems == []


def test_a_state_is_written_in_pieces_without_a_copy_of_it_in_memory(tmp_path: Path) -> None:
    tensors = {f"layer{number}": torch.rand(1 << 18) for number in range(16)}
    size = sum(tensor.nbytes for tensor in tensors.values())
    tracemalloc.start()
    States(tmp_path).save({"stage": "search", "tensors": tensors})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < size / 8


def test_no_state_is_none(tmp_path: Path) -> None:
    assert States(tmp_path).newest() == (None, [])


@pytest.mark.parametrize("how", DAMAGE, ids=DAMAGE_NAMES)
def test_a_damaged_state_falls_back_to_the_one_before(tmp_path: Path, how: Callable) -> None:
    states = saved(tmp_path, 2)
    damage(states.path(2), how)
    found, problems = states.newest()
    assert found["number"] == 1 and len(problems) == 1 and "state-2.pt" in problems[0]


@pytest.mark.parametrize("how", DAMAGE[:4], ids=DAMAGE_NAMES[:4])
def test_a_cut_state_is_noticed_without_its_checksum_too(tmp_path: Path, how: Callable) -> None:
    states = saved(tmp_path, 2)
    damage(states.path(2), how)
    side_car(states.path(2)).unlink()
    assert states.newest()[0]["number"] == 1


def test_a_damaged_checksum_passes_its_state_over(tmp_path: Path) -> None:
    states = saved(tmp_path, 2)
    damage(side_car(states.path(2)), cut(0))
    assert states.newest()[0]["number"] == 1


def test_two_damaged_states_give_none_and_two_problems(tmp_path: Path) -> None:
    states = saved(tmp_path, 2)
    for number in (1, 2):
        damage(states.path(number), flip)
    found, problems = states.newest()
    assert found is None and len(problems) == 2


def test_a_state_after_a_damaged_one_gets_a_new_name(tmp_path: Path) -> None:
    states = saved(tmp_path, 2)
    damage(states.path(2), flip)
    states.save(state(9))
    assert states.newest()[0]["number"] == 9 and states.numbers() == [3, 2]


def test_other_files_are_no_states(tmp_path: Path) -> None:
    states = saved(tmp_path, 1)
    (tmp_path / "state-old.pt").write_bytes(b"")
    assert states.numbers() == [1]


def test_removing_all_states_leaves_no_checksum_behind(tmp_path: Path) -> None:
    states = saved(tmp_path, 3)
    (tmp_path / "state-9.pt.sha256").write_text("orphan")
    (tmp_path / "model.safetensors").write_bytes(b"")
    states.remove_all()
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_state_of_a_stage_loads_as_plain_values(tmp_path: Path) -> None:
    """Optimizers, schedules and the counter of milestones pass torch's safe loader."""
    model, log = tiny_model(), MemoryLog()
    group = Group(tuple(model.parameters()), Optim(OptimConfig("adam", 0.01, 0, "multistep")))
    run_stage(model, Stage("s", 4, (group,)), TinyData(), log)
    states = States(tmp_path)
    states.save(log.states[-1])
    found, problems = states.newest()
    assert problems == [] and found["epoch"] == 4


def test_the_checksum_has_the_format_of_sha256sum(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_model(path, {}, {})
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert side_car(path).read_text() == f"{digest}  m.safetensors\n"
    assert digest == sha256_file(path)


def test_the_checksum_is_written_before_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets: list[str] = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (targets.append(Path(b).name), replace(a, b)))
    save_model(tmp_path / "m.safetensors", {}, {})
    assert targets == ["m.safetensors.sha256", "m.safetensors"]


TENSORS = {"b.weight": torch.arange(6.0).view(2, 3), "a": torch.tensor(3)}
META = {"network": "tiny", "values": [1, 2.5, None], "text": "ü"}


def test_a_model_comes_back(tmp_path: Path) -> None:
    save_model(tmp_path / "m.safetensors", TENSORS, META)
    tensors, meta = load_model(tmp_path / "m.safetensors")
    assert meta == META and tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)


def test_a_model_is_the_same_file_each_time(tmp_path: Path) -> None:
    paths = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    save_model(paths[0], TENSORS, META)
    save_model(
        paths[1], dict(reversed(TENSORS.items())), dict(reversed(META.items()))
    )
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_model_has_its_metadata_in_a_fixed_order(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_model(path, TENSORS, META)
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    (form, (_, text)) = header["__metadata__"].items()
    assert form == ("format", "pt") and next(iter(header)) == "__metadata__"
    assert list(json.loads(text)) == sorted(META)


def test_channels_last_weights_are_saved_in_plain_order(tmp_path: Path) -> None:
    weight = torch.rand(2, 3, 4, 4)
    save_model(
        tmp_path / "m.safetensors", {"w": weight.to(memory_format=torch.channels_last)}, {}
    )
    assert torch.equal(load_model(tmp_path / "m.safetensors")[0]["w"], weight)


@pytest.mark.parametrize("how", DAMAGE, ids=DAMAGE_NAMES)
def test_a_damaged_model_is_refused(tmp_path: Path, how: Callable) -> None:
    path = tmp_path / "m.safetensors"
    save_model(path, TENSORS, META)
    damage(path, how)
    with pytest.raises(VPNsError, match="checksum|damaged"):
        load_model(path)


def test_a_missing_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VPNsError, match="does not exist"):
        load_model(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    "data",
    [
        b"", b"short", b"\xff" * 8, b"\xff" * 64, (4).to_bytes(8, "little") + b"null",
        (2).to_bytes(8, "little") + b"[]", save_safetensors({"a": torch.zeros(1)}),
        save_safetensors({"a": torch.zeros(1)}, {"format": "pt"}),
        save_safetensors({"a": torch.zeros(1)}, {"vpns": "not json"}),
    ],
)  # fmt: skip
def test_metadata_that_is_not_ours_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(data)
    with pytest.raises(VPNsError, match="not a model file of ours"):
        read_meta(path)


@pytest.mark.parametrize("shape", [(), (3,), (3, 2, 2)])
def test_a_packed_tensor_comes_back_through_json(shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    packed = json.loads(json.dumps(pack_tensor(tensor)))
    assert torch.equal(unpack_tensor(packed), tensor) and unpack_tensor(packed).shape == shape


def test_packing_keeps_the_order_of_a_transposed_tensor() -> None:
    tensor = torch.arange(6.0).view(2, 3).T
    assert torch.equal(unpack_tensor(pack_tensor(tensor)), tensor)


def test_an_atomic_write_writes_text_and_bytes(tmp_path: Path) -> None:
    atomic_write(tmp_path / "a", "ü")
    atomic_write(tmp_path / "b", b"\x00")
    assert (tmp_path / "a").read_text("utf-8") == "ü" and (tmp_path / "b").read_bytes() == b"\x00"


def test_an_atomic_write_leaves_the_file_alone(tmp_path: Path) -> None:
    atomic_write(tmp_path / "a", "old")
    atomic_write(tmp_path / "a", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.fixture(params=["open", "write", "fsync", "replace"])
def failing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Makes one of the steps of a write fail with the error it is given."""

    def install(error: BaseException) -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise error

        if request.param == "open":
            monkeypatch.setattr("builtins.open", fail)
        elif request.param == "write":
            monkeypatch.setattr("builtins.open", half_writer(error))
        else:
            monkeypatch.setattr(os, request.param, fail)

    return install


def half_writer(error: BaseException) -> Callable:
    """An `open` whose files take half of what is written and then fail."""
    plain = open

    def opened(path: Path, mode: str) -> Any:
        file = plain(path, mode, buffering=0)

        class Half:
            def __enter__(self) -> "Half":
                return self

            def __exit__(self, *_: Any) -> None:
                file.close()

            def write(self, data: bytes) -> None:
                file.write(data[: len(data) // 2])
                raise error

        return Half()

    return opened


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(
    tmp_path: Path, failing: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    atomic_write(tmp_path / "a", "old")
    failing(OSError(errno.EIO, "Input/output error"))
    with pytest.raises(VPNsError, match="cannot write .*a .*Input/output error"):
        atomic_write(tmp_path / "a", "new")
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_an_interrupted_write_keeps_the_old_file_and_leaves_nothing(
    tmp_path: Path, failing: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    atomic_write(tmp_path / "a", "old")
    failing(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        atomic_write(tmp_path / "a", "new")
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT])
def test_a_full_disk_is_named(code: int) -> None:
    message = write_problem(Path("result/a"), OSError(code, os.strerror(code)))
    assert message.startswith("no room to write result/a") and "free some space" in message


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(VPNsError, match="cannot write .*absent.* choose another folder"):
        atomic_write(tmp_path / "absent" / "a", "new")


def test_a_full_disk_in_the_middle_of_a_state_keeps_the_states_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = saved(tmp_path, 2)
    monkeypatch.setattr("builtins.open", half_writer(OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(VPNsError, match="no room to write"):
        states.save(state(3))
    monkeypatch.undo()
    assert states.newest()[0]["number"] == 2 and states.numbers() == [2, 1]


def pruned_model() -> tuple[PromptedClassifier, dict[str, Tensor]]:
    """Half of the weights kept, two of the kept ones exactly zero, and a prompt that moved."""
    model = tiny_model(seed=3)
    weights = prunable(model.network).items()
    masks = keep_top({name: weight.detach().abs() for name, weight in weights}, 0.5)
    apply_masks(model.network, masks)
    with torch.no_grad():
        model.prompt.program.copy_(torch.randn(3, SIZE, SIZE))
        kept = masks["3.weight"].flatten().nonzero().flatten()
        model.network[3].weight.view(-1)[kept[0]] = 0.0
        model.network[3].weight.view(-1)[kept[-1]] = -0.0
    return model, masks


def round_trip(folder: Path) -> tuple[PromptedClassifier, dict[str, Tensor], dict, dict]:
    model, masks = pruned_model()
    save_model(folder / "m.safetensors", *export(model, masks))
    return model, masks, *load_model(folder / "m.safetensors")


def test_masks_come_back_with_kept_weights_that_are_zero(tmp_path: Path) -> None:
    _, masks, tensors, meta = round_trip(tmp_path)
    found = masks_of(tensors, meta)
    assert found.keys() == masks.keys()
    assert all(torch.equal(found[name], masks[name]) for name in masks)


def test_a_restored_model_has_every_value(tmp_path: Path) -> None:
    model, _, tensors, meta = round_trip(tmp_path)
    other = tiny_model(seed=9)
    other.label_map = None
    restore(other, tensors, meta)
    ours, theirs = model.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_restored_model_gives_the_same_logits(tmp_path: Path) -> None:
    model, _, tensors, meta = round_trip(tmp_path)
    other = tiny_model(seed=9)
    restore(other, tensors, meta)
    x = torch.rand(4, 3, SIZE, SIZE)
    assert torch.equal(model.eval()(x, prompted=True), other.eval()(x, prompted=True))


def test_the_file_has_the_keys_of_the_plain_network(tmp_path: Path) -> None:
    model, _, tensors, _ = round_trip(tmp_path)
    assert tensors.keys() == model.network.state_dict().keys()


def test_minus_zero_is_never_written_in_a_pruned_place() -> None:
    model, masks = pruned_model()
    with torch.no_grad():
        for name, weight in prunable(model.network).items():
            weight[~masks[name]] = -0.0
    tensors, _ = export(model, masks)
    for name, mask in masks.items():
        assert not tensors[name][~mask].signbit().any()


def test_export_leaves_the_model_alone() -> None:
    model, masks = pruned_model()
    with torch.no_grad():
        model.network[0].weight[~masks["0.weight"]] = 5.0
    export(model, masks)
    assert bool((model.network[0].weight[~masks["0.weight"]] == 5.0).all())


def test_a_model_without_prompt_and_mapping_comes_back() -> None:
    model, masks = pruned_model()
    model.prompt = model.label_map = None
    tensors, meta = export(model, masks)
    other = tiny_model()
    other.prompt = None
    restore(other, tensors, json.loads(json.dumps(meta)))
    assert other.label_map is None


@pytest.mark.parametrize("change", [lambda t: t.pop("7.bias"), lambda t: t.update(x=torch.ones(1))])
def test_tensors_that_do_not_fit_are_refused(change: Callable) -> None:
    tensors, meta = export(*pruned_model())
    change(tensors)
    with pytest.raises(ValueError, match="does not fit the network"):
        restore(tiny_model(), tensors, meta)


def test_a_prompt_of_another_size_is_refused() -> None:
    tensors, meta = export(*pruned_model())
    other = tiny_model()
    other.prompt = PadPrompt(SIZE + 1, 2)
    with pytest.raises(ValueError, match="does not fit"):
        restore(other, tensors, meta)

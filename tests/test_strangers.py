"""Files of strangers: whichever way they come in, nothing in them runs and nothing is believed.

Each is refused with exit code 1 and one line that names the file, or taken with a line on what
is not known of it.
"""

import decimal
import io
import json
import os
import pickle
import resource
import shutil
import signal
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from cli import at_call, call, forked, only_run, run, send
from safetensors.torch import load_file, save_file
from test_foreign import checkpoint
from torch import nn

from runfolder.level import Level
from runfolder.stage_log import StageLog
from utils import torch_look, torch_pickle
from utils.checkpoint import load_model, save_model
from utils.errors import VPNsError
from utils.tensors import read_tensors

QUICK = ["--density_list", "0.2", "--eval_every", 0, "--input_size", 4, "--output_size", 4]
SHARES = (0, 0.01, 0.5, 0.99)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The folder of a run that was killed in its search and left a state."""
    return killed_after(tmp_path_factory.mktemp("stopped"), "save")


def killed_after(folder, method):
    """The folder of a run that was killed after a method of its level was first called."""
    owner = StageLog if method == "save" else Level
    kill = (owner, method, 1, send("SIGKILL"), True)
    forked(folder / "run", *QUICK, before=lambda: at_call(*kill))
    return only_run(folder / "run")


@pytest.fixture(scope="module")
def level(tmp_path_factory):
    """The level of a finished run."""
    return run(tmp_path_factory.mktemp("run"), *QUICK, "--epochs", 0).folder / "d0.2"


@pytest.fixture
def enter(tmp_path, stopped):
    """Give a file to the program through one of its entrances."""

    def evaluated(source):
        return call("--evaluate", source, "--dataset", "digits", "--density", 0.2, *CPU)

    def resumed(path):
        folder = shutil.copytree(stopped, tmp_path / "resumed", dirs_exist_ok=True)
        planted = shutil.copy(path, folder / "d0.2" / path.name)
        return run(tmp_path / "elsewhere", *QUICK, "--resume", planted)

    def flagged(name, path):
        return run(tmp_path / "result", *QUICK, "--epochs", 0, name, path)

    entrances = {
        "evaluate": evaluated,
        "evaluate URL": lambda path: evaluated(path.as_uri()),
        "resume": resumed,
    }
    return lambda name, path: entrances.get(name, partial(flagged, f"--{name}"))(path)


CPU = ("--device", "cpu", "--workers", 0)
ENTRANCES = ("weights", "init_mask", "init_from", "evaluate", "evaluate URL", "resume")


# Code


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, marker):
        self.command = f"touch {marker}"

    def __reduce__(self):
        return os.system, (self.command,)


PAYLOADS = {
    "posix.system": Trap,
    "decimal.Decimal": lambda marker: decimal.Decimal(1),
    "functools.partial": lambda marker: partial(print, "x"),
}


@pytest.mark.parametrize("entrance", ENTRANCES)
@pytest.mark.parametrize("name", PAYLOADS)
def test_pickled_code_is_refused_by_name_and_never_run(enter, tmp_path, entrance, name):
    path, marker = tmp_path / "state-9.pt", tmp_path / "marker"
    torch.save({"state_dict": PAYLOADS[name](marker)}, path)
    done = enter(entrance, path)
    assert done.code == 1 and not marker.exists()
    assert f"{path.name} is refused: reading it would call" in done.error and name in done.error


def protocol(number):
    return lambda content, path: path.write_bytes(pickle.dumps(content, number))


FORMS = {
    "zip": torch.save,
    "before torch 1.6": partial(torch.save, _use_new_zipfile_serialization=False),
    **{f"pickle {number}": protocol(number) for number in (0, 1, 2, 4, 5)},
}


@pytest.mark.parametrize("form", FORMS)
def test_code_is_named_in_every_form_of_a_pickle(tmp_path, form):
    FORMS[form]({"state_dict": Trap(tmp_path / "marker")}, tmp_path / "evil.pth")
    assert "would call posix.system" in refusal(tmp_path / "evil.pth")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        (bytearray(8), "builtins.bytearray"),
        (print, "builtins.print"),
        (decimal.Decimal(1), "decimal.Decimal"),
        (np.array([1], dtype=object), "for objects in an array of numpy"),
    ],
)
def test_other_things_than_tensors_and_plain_values_are_refused_by_name(tmp_path, content, name):
    torch.save({"x": content}, tmp_path / "w.pt")
    assert f"would call {name}" in refusal(tmp_path / "w.pt")


def test_what_can_be_saved_instead_is_said(tmp_path):
    torch.save({"x": decimal.Decimal(1)}, tmp_path / "w.pt")
    assert "save the state dict alone, torch.save(network.state_dict(), FILE)" in refusal(
        tmp_path / "w.pt"
    )


@pytest.mark.parametrize("name", ["arrays.npz", "program.pt2"])
def test_archive_of_another_tool_is_not_called_damaged(tmp_path, name):
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        archive.writestr("archive_format", "pt2")
    assert "an archive, but not one of torch.save" in refusal(tmp_path / name)


def test_program_of_torchscript_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("w/constants.pkl", pickle.dumps((), 2))
        archive.writestr("w/code/run.py", "import os")
    assert "a TorchScript archive, which holds code" in refusal(tmp_path / "w.pt")


def refusal(path):
    """Why a file is not read, in one line that names it."""
    with pytest.raises(VPNsError) as error:
        read_tensors(path)
    text = str(error.value)
    assert str(path) in text and "\n" not in text and error.value.exit_code == 1
    return text


# Names and sizes that cannot be


def saved(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


PLAIN = {"a": torch.arange(1000.0)}
COUNT = b"M\xe8\x03"  # 1000 in a pickle
HUGE = b"\x8a\x06" + (10**12).to_bytes(6, "little")


def rezipped(name="{}", change=lambda name, data: data, method=zipfile.ZIP_STORED):
    """A file of torch.save with its records written anew."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(saved(PLAIN))) as old,
        zipfile.ZipFile(buffer, "w", method) as new,
    ):
        for record in old.namelist():
            new.writestr(name.format(record), change(record, old.read(record)))
    return buffer.getvalue()


def declared(count):
    """Another number of values in the pickle of a file of torch.save."""
    return lambda name, data: data.replace(COUNT, count) if name.endswith("data.pkl") else data


def declared_shape(name, data):
    """A tensor of shape (2^62, 2^62, 0) in the pickle of a file of torch.save."""
    huge = b"\x8a\x08" + (2**62).to_bytes(8, "little")
    shape, strides = b"(" + huge + huge + b"K\x00t", b"(K\x01K\x01K\x01t"
    old = COUNT + b"\x85q\x08K\x01\x85q\x09"
    return data.replace(old, shape + b"q\x08" + strides + b"q\x09")


def safetensors(shape, offsets, data=bytes(8), name="a", length=None):
    header = {name: {"dtype": "F32", "shape": shape, "data_offsets": offsets}}
    text = json.dumps(header).encode()
    return struct.pack("<Q", length or len(text)) + text + data


def recounted(count):
    """The format before torch 1.6, with another count before the values of its one storage."""
    data = saved(PLAIN, _use_new_zipfile_serialization=False)
    return data[:-4008] + struct.pack("<q", count) + data[-4000:]


def header_of(items):
    text = f'{{"__metadata__":{{{",".join(items)}}}}}'.encode()
    return struct.pack("<Q", len(text)) + text


class Array:
    """A pickle that asks for 10^12 zeros when it is read."""

    def __reduce__(self):
        return bytearray, (10**12,)


ABSURD = {
    "name above, zip": (".pt", lambda: rezipped("../../{}"), "a name outside its own folder"),
    "absolute name, zip": (".pt", lambda: rezipped("/etc/{}"), "a name outside its own folder"),
    "name of a drive, zip": (".pt", lambda: rezipped("C:/{}"), "a name outside its own folder"),
    "name above": (".safetensors", lambda: safetensors([2], [0, 8], name="../a"), "'../a'"),
    "absolute name": (".safetensors", lambda: safetensors([2], [0, 8], name="/etc/a"), "'/etc/a'"),
    "name of a drive": (".safetensors", lambda: safetensors([2], [0, 8], name="C:\\a"), r"C:\\a"),
    "huge shape": (".safetensors", lambda: safetensors([10**12], [0, 8]), "is damaged"),
    "huge data": (".safetensors", lambda: safetensors([10**12], [0, 4 * 10**12]), "is damaged"),
    "shape over 64 bits": (".safetensors", lambda: safetensors([2**40] * 2, [0, 8]), "is damaged"),
    "data beyond the end": (".safetensors", lambda: safetensors([2], [8, 16]), "is damaged"),
    "huge header": (".safetensors", lambda: safetensors([2], [0, 8], length=2**60), "is damaged"),
    "no values of a huge shape": (".safetensors", lambda: safetensors([2**63, 0], [0, 0], b""),
                                  "is damaged"),
    "header of pairs": (".safetensors", lambda: header_of(f'"{i:x}":""' for i in range(2**20)),
                        "a larger header than a network needs"),
    "header of numbers": (".safetensors", lambda: header_of(
        ['"a":{"dtype":"F32","shape":[0' + ",0" * 2**21 + '],"data_offsets":[0,0]}']),
        "a larger header than a network needs"),
    "header of text": (".safetensors", lambda: header_of([f'"vpns":"{"x" * 2**25}"']),
                       "a larger header than a network needs"),
    "huge storage, zip": (".pt", lambda: rezipped(change=declared(HUGE)),
                          "declares a tensor of 1,000,000,000,000 values"),
    "no values of a shape beyond numbers": (".pt", lambda: rezipped(change=declared_shape),
                                            "impossible sizes"),
    "huge storage, legacy": (".pth", lambda: saved(
        PLAIN, _use_new_zipfile_serialization=False).replace(COUNT, HUGE),
        "declares a tensor of 1,000,000,000,000 values"),
    "storage of another size": (".pth", lambda: recounted(0), "is damaged"),
    "storage of less than nothing": (".pth", lambda: recounted(-1000), "is damaged"),
    "huge view": (".pt", lambda: saved({"a": torch.zeros(1).expand(10**6, 10**6)}),
                  "declares a tensor of shape (1000000, 1000000)"),
    "huge array": (".pt", lambda: saved({"a": Array()}), "would call builtins.bytearray"),
    "packed zeros": (".pt", lambda: rezipped(
        change=lambda name, data: bytes(2**28) if name.endswith("data/0") else data,
        method=zipfile.ZIP_DEFLATED), "its records are packed"),
}  # fmt: skip


def little_memory():
    """Let this process grow by 96 MiB, which is less than what any of the files asks for."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    room = pages * resource.getpagesize() + 96 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (room, room))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
@pytest.mark.parametrize("case", ABSURD)
def test_absurd_file_is_refused_before_memory_is_taken_for_it(tmp_path, case):
    suffix, write, reason = ABSURD[case]
    path = tmp_path / f"absurd{suffix}"
    path.write_bytes(write())
    words = ["--evaluate", path, "--dataset", "digits", "--density", 0.4]
    done = forked(tmp_path / "result", *words, before=little_memory)
    assert done.code == 1 and done.error.startswith(str(path)) and reason in done.error
    assert {p.name for p in tmp_path.iterdir()} == {path.name, "result.out", "result.err"}


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_records_of_one_name_are_refused(tmp_path):
    (tmp_path / "w.pt").write_bytes(rezipped())
    with zipfile.ZipFile(tmp_path / "w.pt", "a") as archive:
        archive.writestr("archive/data.pkl", b"")
    assert "two records of the same name" in refusal(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("tensor", "name"),
    [
        (torch.eye(3).to_sparse(), "_rebuild_sparse_tensor"),
        (torch.empty(3, device="meta"), "_rebuild_meta_tensor_no_storage"),
    ],
)
def test_tensor_that_is_no_plain_array_is_refused_by_name(tmp_path, tensor, name):
    torch.save({"a": tensor}, tmp_path / "w.pt")
    assert name in refusal(tmp_path / "w.pt")


def endless():
    value = [torch.ones(2)]
    return [*value, value.append(value) or value]


def doubled(times):
    value = ["x"]
    for _ in range(times):
        value = [value, value]
    return value


def tall(height):
    value = []
    for _ in range(height):
        value = [value]
    return value


WITHOUT_END = {
    "holds itself": (endless, "hold one another without end"),
    "a list of lists of lists": (lambda: doubled(40), "hold one another without end"),
    "deep": (lambda: tall(300), "hold one another without end"),
    "many numbers": (lambda: [0] * (torch_pickle.ITEMS + 1), "are too many"),
    "long keys": (lambda: {i + "x" * 2**20: 0 for i in map(chr, range(65, 85))}, "are too many"),
    "long text": (lambda: "x" * (torch_pickle.TEXT + 1), "are too many"),
    "huge number": (lambda: 10**400, "it holds a int"),
    "key of a tuple": (lambda: {(1, 2): 3}, "it holds a tuple"),
}


@pytest.mark.parametrize("case", WITHOUT_END)
def test_values_that_never_end_are_refused(tmp_path, case):
    value, reason = WITHOUT_END[case]
    torch.save({"state_dict": {}, "a": value()}, tmp_path / "w.pt")
    assert reason in refusal(tmp_path / "w.pt")


WORD = b"\x8c\x01x"  # the text x


def hand_made(path, body):
    """A file of torch.save that holds the pickle `body` and no tensor."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x04" + body + b".")
        archive.writestr("archive/version", "3\n")


def hashed_for_ever():
    """A key that is 60 times the pair of the one before."""
    pairs = WORD + b"\x85"
    for number in range(60):
        pairs += b"q" + bytes([number]) + b"h" + bytes([number]) + b"\x86"
    return b"}" + pairs + WORD + b"s"


HOSTILE = {
    "a key that takes 2^60 steps": hashed_for_ever,
    "a memo of 2^31 entries": lambda: b"}r\xff\xff\xff\x7f",
    "a text of 2^62 bytes": lambda: b"}\x8d" + (2**62).to_bytes(8, "little"),
    "a number of 2^30 bytes": lambda: b"}\x8b" + (2**30).to_bytes(4, "little"),
    "codecs": lambda: b"}\x8c\x07_codecs\x8c\x06encode\x93" + WORD + b"\x85R\x86b",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_small_hostile_pickle_takes_neither_memory_nor_time(tmp_path, case):
    hand_made(tmp_path / "w.pt", HOSTILE[case]())
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    refusal(tmp_path / "w.pt")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert spent < torch_look.SECONDS + 3
    assert (tmp_path / "w.pt").stat().st_size < 1000


SHADOWS = {"values": 1, "keys": 2, "get": 3, "_metadata": {}}


def test_attributes_of_a_dict_are_left_out(tmp_path):
    state = OrderedDict(a=torch.ones(2))
    state.__dict__.update(SHADOWS)
    torch.save({"state_dict": state}, tmp_path / "w.pt")
    read = read_tensors(tmp_path / "w.pt")["state_dict"]
    assert list(read.items()) == [("a", read["a"])]


def test_the_process_that_looks_has_no_rights(tmp_path):
    attempts = (
        "import os, socket, sys; sys.path.append(sys.argv[1])\n"
        "from utils.torch_look import give_up_rights\n"
        "give_up_rights(0)\n"
        "acts = [lambda: open('/dev/null'), lambda: open('x', 'w'), lambda: socket.socket(),\n"
        "        lambda: os.pipe(), lambda: bytearray(2**30)]\n"
        "for act in acts:\n"
        "    try: act()\n"
        "    except (OSError, MemoryError): continue\n"
        "    os._exit(9)\n"
    )
    command = [sys.executable, "-c", attempts, str(Path(__file__).parent.parent)]
    assert subprocess.run(command, cwd=tmp_path, check=False).returncode == 0


def test_tensors_of_every_kind_come_back_as_torch_would_read_them(tmp_path):
    kinds = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8",
             "uint8", "bool", "complex64", "complex128")  # fmt: skip
    values = {kind: torch.arange(24).view(2, 3, 4).to(getattr(torch, kind)) for kind in kinds}
    whole = values["float32"]
    values |= {"turned": whole.permute(2, 0, 1), "part": whole[1, 1:], "empty": torch.empty(0, 3),
               "scalar": torch.tensor(3), "parameter": nn.Parameter(whole)}  # fmt: skip
    content = {"tensors": values, 3: (None, True, 2.5, "ä\ud800"), "set": {1}, "list": [[]]}
    for zipped in (True, False):
        torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
        read = read_tensors(tmp_path / "w.pt")
        theirs = torch.load(tmp_path / "w.pt", weights_only=True)
        tensors = read.pop("tensors")
        assert theirs.pop("tensors").keys() == tensors.keys() and read == theirs
        for name, tensor in tensors.items():
            assert tensor.dtype == values[name].dtype and torch.equal(tensor, values[name])
        assert tensors["part"].untyped_storage().data_ptr() == (
            tensors["turned"].untyped_storage().data_ptr()
        )


# Cut files


@pytest.fixture(scope="module")
def whole(level, stopped, tmp_path_factory):
    """A good file of each kind, none with a checksum beside it."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copy(level / "model.safetensors", folder)
    shutil.copy(next(stopped.glob("d0.2/state-*.pt")), folder / "state-9.pt")
    torch.save(checkpoint(), folder / "best.pth")
    torch.save(load_file(level / "model.safetensors"), folder / "weights.pth")
    return folder


CUTS = [
    ("weights", "model.safetensors"), ("weights", "weights.pth"),
    ("evaluate", "model.safetensors"), ("evaluate", "state-9.pt"), ("evaluate", "best.pth"),
    ("evaluate URL", "best.pth"), ("resume", "state-9.pt"),
    ("init_mask", "model.safetensors"), ("init_mask", "best.pth"),
    ("init_from", "model.safetensors"), ("init_from", "best.pth"),
]  # fmt: skip


@pytest.mark.parametrize(("entrance", "name"), CUTS)
def test_cut_file_is_refused_by_name(enter, whole, tmp_path, entrance, name):
    data = (whole / name).read_bytes()
    for share in SHARES:
        (tmp_path / name).write_bytes(data[: int(share * len(data))])
        done = enter(entrance, tmp_path / name)
        assert done.code == 1 and f"{name} is damaged" in done.error, share


# Flipped bits


def flipped(data, place):
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize("record", ["data.pkl", "data/0", "version"])
def test_flipped_bit_in_a_zip_is_found_by_its_own_sums(tmp_path, record):
    data = saved(PLAIN)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        place = data.index(archive.read(f"archive/{record}")) + 1
    (tmp_path / "w.pth").write_bytes(flipped(data, place))
    reason = refusal(tmp_path / "w.pth")
    assert f"checksum mismatch in archive/{record}" in reason


def test_no_flipped_bit_of_a_zip_changes_a_tensor(tmp_path):
    path, data = tmp_path / "w.pt", saved(PLAIN)
    taken = 0
    for place in range(0, len(data), 61):
        path.write_bytes(flipped(data, place))
        try:
            found = read_tensors(path)
        except VPNsError as error:
            assert str(path) in str(error)
        else:  # padding between the records, dates of the records
            taken += 1
            assert found.keys() == PLAIN.keys() and torch.equal(found["a"], PLAIN["a"])
    assert taken < len(data) / 61 / 2


# What is not known of a file


def note_on(path, capsys):
    read_tensors(path)
    return capsys.readouterr().out


def test_safetensors_without_a_checksum_are_noted(tmp_path, capsys):
    path = tmp_path / "w.safetensors"
    save_file(PLAIN, path)
    assert note_on(path, capsys) == (
        f"note: {path} has no w.safetensors.sha256 beside it: safetensors has no checksum, "
        "so a changed bit would not be noticed\n"
    )


def test_old_format_of_torch_without_a_checksum_is_noted(tmp_path, capsys):
    path = tmp_path / "w.pth"
    torch.save(PLAIN, path, _use_new_zipfile_serialization=False)
    note = note_on(path, capsys)
    assert note.count("\n") == 1 and "the old format of torch.save has no checksum" in note


def test_zip_with_its_own_sums_alone_is_noted(tmp_path, capsys):
    torch.save(PLAIN, tmp_path / "w.pth")
    assert "only the CRC-32 sums inside it were compared" in note_on(tmp_path / "w.pth", capsys)


def test_file_with_its_checksum_beside_it_is_not_noted(level, capsys):
    assert note_on(level / "model.safetensors", capsys) == ""


@pytest.mark.parametrize(
    ("entrance", "name"), [case for case in CUTS if case[1] == "model.safetensors"]
)
def test_program_notes_once_that_a_file_has_no_checksum(enter, whole, entrance, name):
    done = enter(entrance, whole / name)
    notes = [line for line in done.out.splitlines() if "so a changed bit" in line]
    assert done.code == 0 and len(notes) == 1 and str(whole / name) in notes[0]


# Values that are none


def changed_state(stopped, tmp_path, **changed):
    """The run that was stopped, its only state with other values, and that state."""
    folder = shutil.copytree(stopped, tmp_path / "planted")
    (path,) = folder.glob("d0.2/state-*.pt")
    torch.save(torch.load(path, weights_only=True) | changed, path)
    path.with_name(f"{path.name}.sha256").unlink()
    return folder, path


@pytest.mark.parametrize(
    "changed",
    [{"rows": None}, {"stage": 3}, {"density": 0.1}, {"epoch": -1}, {"passes": float("nan")}],
)
def test_state_of_something_else_counts_as_damaged(stopped, tmp_path, changed):
    folder, path = changed_state(stopped, tmp_path, **changed)
    (tmp_path / "run/vpns" / stopped.parent.name).mkdir(parents=True)
    own = shutil.move(folder, tmp_path / "run/vpns" / stopped.parent.name / stopped.name)
    done = run(tmp_path / "run", *QUICK)
    assert done.folder == own
    assert f"{own / path.relative_to(folder)} does not hold what it should" in done.out
    assert "going back to the state before it" in done.out


def test_named_state_without_its_values_is_refused(stopped, tmp_path):
    _, path = changed_state(stopped, tmp_path, rows=None)
    done = run(tmp_path / "elsewhere", *QUICK, "--resume", path)
    assert done.code == 1 and done.error.startswith(f"{path} does not hold") and path.exists()


@pytest.mark.parametrize(
    "changed",
    [
        {"tensors": {}}, {"tensors": {"prompt.program": torch.zeros(1)}}, {"tallies": {}},
        {"optimizers": []}, {"best": {"x": 1}}, {"best": {"tensors": {"x": torch.ones(1)}}},
        {"epoch": 9}, {"tallies": {"prompted": (None, 0, 0), "clean": (0.0, 0, 0)}},
    ],
)  # fmt: skip
def test_state_of_another_network_or_stage_is_refused_by_name(stopped, tmp_path, changed):
    folder, path = changed_state(stopped, tmp_path, **changed)
    done = run(tmp_path / "elsewhere", *QUICK, "--resume", folder)
    assert done.code == 1 and done.error.startswith(f"{path} does not hold"), done.error


@pytest.mark.parametrize(
    "change", [lambda tensor: tensor * float("nan"), torch.Tensor.int, lambda tensor: "x"]
)
def test_scores_that_are_none_are_refused_by_name(stopped, tmp_path, change):
    (path,) = stopped.glob("d0.2/state-*.pt")
    tensors = torch.load(path, weights_only=True)["tensors"]
    folder, path = changed_state(
        stopped, tmp_path, tensors=tensors | {"scores": change(tensors["scores"])}
    )
    done = run(tmp_path / "elsewhere", *QUICK, "--resume", folder)
    assert done.code == 1 and done.error.startswith(f"{path} does not hold"), done.error


def test_settings_of_an_optimizer_are_not_taken_from_a_state(stopped, tmp_path):
    (path,) = stopped.glob("d0.2/state-*.pt")
    optimizers = torch.load(path, weights_only=True)["optimizers"]
    optimizers[0]["param_groups"][0] |= {"betas": "x", "momentum": "x", "eps": None}
    folder, _ = changed_state(stopped, tmp_path, optimizers=optimizers, schedules=[{"step": 3}])
    assert run(tmp_path / "elsewhere", *QUICK, "--resume", folder).code == 0


def test_file_with_the_name_of_a_state_but_no_number_is_left_alone(stopped, tmp_path):
    folder = shutil.copytree(stopped, tmp_path / "planted")
    (folder / "d0.2" / "state-²٣.pt").write_bytes(b"x")
    done = run(tmp_path / "elsewhere", *QUICK, "--resume", folder)
    assert done.code == 0 and "continuing search" in done.out


@pytest.mark.parametrize(
    "change", [{n: torch.zeros(2, 3) for n in ("exp_avg", "momentum_buffer")}, {"step": "x"}]
)
def test_moments_of_another_kind_are_refused_by_name(stopped, tmp_path, change):
    (path,) = stopped.glob("d0.2/state-*.pt")
    optimizers = torch.load(path, weights_only=True)["optimizers"]
    for moments in optimizers[0]["state"].values():
        moments.update(change)
    folder, path = changed_state(stopped, tmp_path, optimizers=optimizers)
    done = run(tmp_path / "elsewhere", *QUICK, "--resume", folder)
    assert done.code == 1 and done.error.startswith(f"{path} does not hold"), done.error


def sizes(**changed):
    return lambda meta: meta | {"sizes": meta["sizes"] | changed}


@pytest.mark.parametrize(
    "change",
    [
        lambda meta: {},
        lambda meta: meta | {"config": [1]},
        lambda meta: meta | {"network": 3},
        lambda meta: meta | {"label_map": [10**6] * 10},
        lambda meta: meta | {"label_map": "x"},
        lambda meta: meta | {"kept_zeros": {"conv1": [10**9]}},
        sizes(output=10**6, input=4),
        sizes(unheard=3),
        lambda meta: meta | {"program": {"shape": [3, 10**6, 10**6], "data": ""}},
        lambda meta: meta | {"config": meta["config"] | {"amp": [3]}},
        lambda meta: meta | {"config": meta["config"] | {"pad_size": 1.5}},
    ],
    ids=["empty", "config", "network", "map", "map's kind", "zeros", "size", "sizes", "prompt",
         "flag's kind", "flag's value"],
)
def test_model_with_impossible_metadata_is_refused(level, tmp_path, change):
    tensors, meta = load_model(level / "model.safetensors")
    path = tmp_path / "model.safetensors"
    save_model(path, tensors, change(meta))
    done = call("--evaluate", path, *CPU)
    assert done.code == 1 and str(path) in done.error and "bug" not in done.error


@pytest.mark.parametrize(
    "change",
    [
        {"visual_prompt": [1]}, {"state_dict": 3}, {"state_dict": {"conv1.weight_mask": "x"}},
        {"visual_prompt": {"program": "x"}},
    ],
)  # fmt: skip
@pytest.mark.parametrize("entrance", ["init_from", "evaluate"])
def test_authors_file_with_impossible_values_is_refused(enter, tmp_path, change, entrance):
    torch.save(checkpoint() | change, tmp_path / "best.pth")
    done = enter(entrance, tmp_path / "best.pth")
    assert done.code == 1 and str(tmp_path / "best.pth") in done.error and "bug" not in done.error


# Files planted in a run folder


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """The folder of a run that was killed after its search."""
    return killed_after(tmp_path_factory.mktemp("searched"), "save_search")


def planted(folder, tmp_path, plant, *words):
    """The same command again, after `plant` has changed a copy of the run folder."""
    copy = shutil.copytree(folder.parents[2], tmp_path / "again") / folder.relative_to(
        folder.parents[2]
    )
    plant(copy)
    return run(tmp_path / "again", *QUICK, *words)


DEEP = "[" * 200_000
TEXTS = ["[1]", "3", '"x"', DEEP, '{"threads": "x", "seconds": "x", "state": [], "seed": [1]}']


@pytest.mark.parametrize("text", TEXTS, ids=["list", "number", "text", "deep", "kinds"])
def test_json_of_another_kind_in_a_run_folder_stops_nothing(searched, tmp_path, text):
    def plant(folder):
        for name in ("run.json", "env.json", "config.json"):
            (folder / name).write_text(text)
        (folder / "metrics.jsonl").write_bytes(text.encode() + b'\nx}\n\xff}\n{"density": []}\n')

    assert planted(searched, tmp_path, plant).code == 0
    elsewhere = [*QUICK, "--epochs", 2]  # names the nearest run
    assert run(tmp_path / "again", *elsewhere, "--dry_run").code == 0


@pytest.mark.parametrize("name", ["env.json", "log.txt", "metrics.jsonl"])
def test_pipe_in_a_run_folder_is_not_waited_for(searched, tmp_path, name):
    folder = shutil.copytree(searched.parents[2], tmp_path / "again")
    (path,) = folder.rglob(name)
    path.unlink()
    os.mkfifo(path)
    done = forked(folder, *QUICK, before=lambda: signal.alarm(60))
    assert done.code == 0 or (name == "log.txt" and done.error == f"{path} is a pipe: remove it")


def rewritten(change, tensors_too=lambda tensors: tensors):
    """A function that changes metadata and tensors of a model file, with a checksum that fits."""

    def rewrite(path):
        tensors, meta = load_model(path)
        save_model(path, tensors_too(tensors), meta | change)

    return rewrite


def ones(tensors):
    return {name: torch.ones_like(tensor) for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    "rewrite",
    [
        rewritten({"kept_zeros": None}), rewritten({"program": [1]}), rewritten({"label_map": [1]}),
        rewritten({"label_map": [10**6] * 10}), rewritten({}, ones), rewritten({}, lambda _: {}),
    ],
    ids=["zeros", "prompt", "map", "map's range", "mask", "no tensors"],
)  # fmt: skip
def test_search_of_another_kind_is_refused_by_name(searched, tmp_path, rewrite):
    path = "d0.2/search.safetensors"
    done = planted(searched, tmp_path, lambda folder: rewrite(folder / path))
    assert done.code == 1 and f"{path} does not hold what it should" in done.error


@pytest.mark.parametrize("change", [{"accuracies": 3}, {"progress": {"rows": "x", "passes": 1}}])
def test_search_without_its_numbers_is_made_again(searched, tmp_path, change):
    path = "d0.2/search.safetensors"
    done = planted(searched, tmp_path, lambda folder: rewritten(change)(folder / path))
    assert done.code == 0 and f"{path} does not hold what it should" in done.out


PARTS = [{"density": 0.3}, {"clean": "x"}]


@pytest.mark.parametrize("result", [3, {}, *PARTS])
def test_level_without_its_results_is_made_again(level, tmp_path, result):
    def plant(folder):
        path = folder / "d0.2" / "model.safetensors"
        row = load_model(path)[1]["result"]
        rewritten({"result": row | result if result in PARTS else result})(path)

    done = planted(level.parent, tmp_path, plant, "--epochs", 0)
    assert done.code == 0 and "this level is made again" in done.out

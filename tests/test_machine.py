"""The machine as it is: file systems, paths, streams, limits, clocks, folders of other people."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cli import ROOT, at_call, call, forked, hashes, only_run, plain_pictures, run, send
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_cli_data_faults import noise, photos, train

import main_vpns
from data.folder import open_own_folders
from program import record
from program.failures import one_line
from program.settings import Config
from runfolder import board, metrics, own
from runfolder.run import Run
from runfolder.stage_log import StageLog
from utils.config import flags_of, parse_flags, path_or_word
from utils.downloads import cache_place
from utils.errors import DataError, VPNsError
from utils.files import atomic_write

QUICK = ["--density_list", "0.1", "--eval_every", 0, "--input_size", 4, "--output_size", 4]
TWO = [*QUICK, "--density_list", "0.2,0.1"]


@pytest.fixture(autouse=True)
def plain_picture(monkeypatch):
    monkeypatch.setattr(record, "draw_run", plain_pictures)


# Locks


@pytest.mark.parametrize("name", ["ENOSYS", "ENOLCK", "EOPNOTSUPP", "EINVAL"])
def test_a_file_system_without_locks_is_told_and_used(tmp_path, monkeypatch, capsys, name):
    def lockf(*_):
        raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)))

    monkeypatch.setattr(own.fcntl, "lockf", lockf)
    own.lock(tmp_path / "run.lock").close()
    assert "file system without locks" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["EAGAIN", "EACCES"])
def test_a_lock_that_is_held_names_its_holder(tmp_path, monkeypatch, name):
    def lockf(*_):
        raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)))

    (tmp_path / "run.lock").write_text("process 7 on node3")
    monkeypatch.setattr(own.fcntl, "lockf", lockf)
    with pytest.raises(own.InUse, match="in use by process 7 on node3"):
        own.lock(tmp_path / "run.lock")


# The same images in another place


@pytest.fixture
def moved(tmp_path):
    """A run on images in one place, and the same images in another."""
    made = train(tmp_path / "out", photos(tmp_path / "job1"))
    shutil.copytree(tmp_path / "job1", tmp_path / "job2")
    return made, tmp_path / "job2"


def test_a_run_goes_on_when_its_images_lie_elsewhere(moved, tmp_path):
    made, there = moved
    again = train(tmp_path / "out", there, "--density_list", "0.2,0.1")
    assert again.folder == made.folder and again.result["read"] == [0.1]
    assert f"whose images lay in {tmp_path / 'job1'}; they are those in {there}" in again.out


def test_a_dry_run_names_the_run_that_would_go_on(moved, tmp_path):
    made, there = moved
    words = ["--dataset", "imagefolder", "--data", there, "--train_images", 0, "--batch_size", 4]
    planned = run(tmp_path / "out", *words, *QUICK, "--dry_run")
    assert json.loads(planned.out)["run"] == str(made.folder)


def test_a_run_of_a_relative_path_goes_on_when_its_folder_is_moved(tmp_path, monkeypatch):
    photos(tmp_path / "a/i")
    monkeypatch.chdir(tmp_path / "a")
    made = train(tmp_path / "out", "i")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    monkeypatch.chdir(tmp_path / "b")
    again = train(tmp_path / "out", "i")
    assert again.folder == made.folder and again.result["read"] == [0.1]


@pytest.mark.parametrize("data", [["x"], "a\0b", 7])
def test_a_run_beside_it_with_odd_settings_stops_nothing(moved, tmp_path, data):
    made, there = moved
    settings = json.loads((made.folder / "config.json").read_text())
    (made.folder / "config.json").write_text(json.dumps(settings | {"data": data}))
    (made.folder / "run.json").unlink()
    assert train(tmp_path / "out", there).code == 0


def test_other_images_in_another_place_make_another_run(moved, tmp_path):
    made, there = moved
    noise(there / "train/a/m00.jpg", 99)
    assert train(tmp_path / "out", there).folder != made.folder


def test_other_flags_make_another_run_wherever_the_images_lie(moved, tmp_path):
    made, there = moved
    assert train(tmp_path / "out", there, "--score_lr", 0.5).folder != made.folder


# Paths


def test_every_flag_that_is_a_path_knows_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    flags = flags_of(Config())
    names = {name for name, facts in flags.items() if facts["parse"] is path_or_word}
    assert names == {"config", "save_dir", "resume", "evaluate", "predict", "export", "pack",
                     "profile", "compact", "model", "to", "data", "weights", "init_mask",
                     "init_from", "distill"}
    for name in names:
        config, _ = parse_flags(Config(), [f"--{name}=~/x"])
        values = [getattr(getattr(config, part), name, None) for part in vars(config)]
        assert values.count("/home/me/x") + values.count(("/home/me/x",)) == 1


def test_a_folder_whose_name_is_no_utf8_holds_a_run(tmp_path):
    done = run(tmp_path / os.fsdecode(b"caf\xe9"), *QUICK)
    assert done.code == 0 and done.folder.is_dir()


def test_a_user_without_a_home_is_told_which_variable_names_a_cache(monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(VPNsError, match="no home folder .* with VPNS_CACHE"):
        cache_place("~/.cache/vpns", "VPNS_CACHE")


@pytest.mark.parametrize("flags", [["-I"], ["-P"]])
def test_python_that_looks_nowhere_by_itself_finds_the_project(tmp_path, flags):
    if sys.version_info < (3, 11) and flags == ["-P"]:
        pytest.skip("Python 3.11 brought -P")
    code = "import runpy, sys; sys.modules['torch'] = None; runpy.run_path(sys.argv[1])"
    words = [sys.executable, *flags, "-c", code, str(ROOT / "main_vpns.py")]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "import of torch halted" in done.stderr  # utils was found before it


# Streams


def streams(tmp_path, *words, shell=""):
    """Run a line of Python behind ready_streams under a shell's redirections."""
    code = f"from utils.start import ready_streams; ready_streams(); {' '.join(words)}"
    command = f'exec "$0" -c "$1" {shell}'
    return subprocess.run(["sh", "-c", command, sys.executable, code], cwd=ROOT, text=True,
                          capture_output=True, check=False)  # fmt: skip


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_takes_everything_and_gives_its_number_to_no_file(tmp_path, closed):
    target = tmp_path / "file"
    line = f"import sys; file = open('{target}', 'w'); print(1); print(2, file=sys.stderr)"
    done = streams(tmp_path, line, "; file.write(str(file.fileno() > 2))", shell=closed)
    assert done.returncode == 0 and target.read_text() == "True"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1"])
def test_a_letter_that_the_output_lacks_is_escaped(tmp_path, monkeypatch, encoding):
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    done = streams(tmp_path, "import sys; print('\\u7ed3'); print('\\u679c', file=sys.stderr)")
    assert (done.stdout, done.stderr) == ("\\u7ed3\n", "\\u679c\n")


def test_notes_and_errors_come_in_order_in_a_file(tmp_path):
    line = "import sys; [print(i, file=(sys.stdout, sys.stderr)[i % 2]) for i in range(6)]"
    assert streams(tmp_path, line, shell="2>&1").stdout.split() == list("012345")


# What only decorates


def broken(*_, **__):
    raise OSError(errno.EROFS, "Read-only file system")


def test_a_picture_that_cannot_be_drawn_is_one_note_and_drawn_at_the_next_start(
    tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(record, "draw_run", broken)
        done = run(tmp_path, *TWO)
    assert done.code == 0 and len(done.result["rows"]) == 2
    assert done.out.count("note: no picture (") == 1
    again = run(tmp_path, *TWO)
    assert (again.folder / "curves.png").exists() and again.result["read"] == [0.2, 0.1]


@pytest.mark.parametrize("text", [None, "density,clean\n0.2,99.99\n"])
def test_a_results_csv_that_is_gone_or_damaged_is_made_anew(tmp_path, text):
    results = run(tmp_path, *TWO).folder / "results.csv"
    before = results.read_bytes()
    results.unlink()
    if text is not None:
        results.write_text(text)
    again = run(tmp_path, *TWO)
    assert again.code == 0 and again.result["read"] == [0.2, 0.1]
    assert results.read_bytes() == before


def test_tensorboard_that_cannot_be_written_is_one_note_and_made_at_the_next_start(
    tmp_path, monkeypatch
):
    from torch.utils import tensorboard

    with monkeypatch.context() as patch:
        patch.setattr(tensorboard, "SummaryWriter", broken)
        done = run(tmp_path / "out", *TWO)
    assert done.code == 0 and done.out.count("note: no TensorBoard files (") == 1
    made, whole = (curves(run(tmp_path / name, *TWO).folder) for name in ("out", "whole"))
    assert made == {tag: steps for tag, steps in whole.items() if not tag.startswith("prompt/")}


def test_a_stop_during_the_picture_is_a_stop(tmp_path, monkeypatch):
    def stopped(folder):
        os.kill(os.getpid(), 15)
        raise RuntimeError("what a library made of it")

    done = forked(tmp_path, *QUICK, before=lambda: monkeypatch.setattr(record, "draw_run", stopped))
    assert done.code == 75


# The clock


def curves(folder: Path) -> dict[str, list[int]]:
    """The steps of each of TensorBoard's curves but those of layers."""
    (file,) = (path for path in folder.glob("events.*") if path.is_file())
    board = EventAccumulator(str(file), {"scalars": 0, "images": 0}).Reload()
    scalars = {tag: [e.step for e in board.Scalars(tag)] for tag in board.Tags()["scalars"]}
    pictures = {tag: [e.step for e in board.Images(tag)] for tag in board.Tags()["images"]}
    return {t: s for t, s in (scalars | pictures).items() if not t.startswith("layer_density")}


def test_curves_are_whole_when_the_clock_was_set_back_between_stop_and_resume(
    tmp_path, monkeypatch
):
    words = [*QUICK, "--epochs", 3]
    whole = run(tmp_path / "whole", *words)
    stop = (StageLog, "save", 4, send("SIGTERM"), True)
    assert forked(tmp_path / "stopped", *words, before=lambda: at_call(*stop)).code == 75
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - 1e6)
    again = run(tmp_path / "stopped", *words)
    assert curves(again.folder) == curves(whole.folder)
    assert set(curves(whole.folder)["prompt/search/d0.1"]) == {1, 2, 3}
    assert len(list(again.folder.glob("events.*"))) == 1


def test_files_of_others_in_the_place_of_tensorboards_stop_nothing(tmp_path):
    done = run(tmp_path, *QUICK)
    shutil.rmtree(done.folder / "d0.1")
    (done.folder / "events.out.tfevents.1.folder").mkdir()
    os.mkfifo(done.folder / "events.out.tfevents.2.pipe")
    (done.folder / "events.out.tfevents.3.text").write_text("no event")
    again = run(tmp_path, *QUICK)
    assert again.code == 0 and len(curves(again.folder)["clean_loss/search/d0.1"]) == 1
    assert len([p for p in again.folder.glob("events.*") if p.is_file()]) == 1


def test_an_error_of_tensorboard_leaves_one_file_at_most_and_is_mended_later(tmp_path, monkeypatch):
    whole = run(tmp_path, *TWO)
    shutil.rmtree(whole.folder / "d0.1")
    with monkeypatch.context() as patch:
        patch.setattr(board, "_only_there", broken)
        assert run(tmp_path, *TWO).out.count("note: no TensorBoard files (") == 1
    again = run(tmp_path, *TWO)
    assert curves(again.folder)["clean_loss/finetune/d0.1"] == [1]
    assert len(list(again.folder.glob("events.*"))) == 1


def test_a_file_of_tensorboard_that_is_half_there_does_not_pass_for_whole(tmp_path, monkeypatch):
    whole = run(tmp_path, *TWO)
    shutil.rmtree(whole.folder / "d0.1")
    (old,) = whole.folder.glob("events.*")
    with monkeypatch.context() as patch:
        patch.setattr(board, "_describe", broken)
        assert run(tmp_path, *TWO).out.count("note: no TensorBoard files (") == 1
    assert list(whole.folder.glob("events.*")) == [old]
    again = run(tmp_path, *TWO)
    assert curves(again.folder)["clean_loss/finetune/d0.1"] == [1]


def test_metrics_that_cannot_be_read_are_not_replaced(tmp_path, monkeypatch):
    done = run(tmp_path, *QUICK)
    shutil.rmtree(done.folder / "d0.1")
    text = (done.folder / "metrics.jsonl").read_text()

    def unreadable(path, *_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(metrics, "read_small", unreadable)
        failed = run(tmp_path, *QUICK)
    assert failed.code == 1 and failed.error.startswith("cannot read ")
    assert (done.folder / "metrics.jsonl").read_text() == text


def test_metrics_that_counted_epochs_from_0_go_on_from_1(tmp_path):
    lines = [{"density": 0.1, "stage": "search", "epoch": epoch, "lr": [0.1]} for epoch in (0, 1)]
    atomic_write(tmp_path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    with Run(tmp_path, {}, main_vpns.Stop()) as opened:
        opened.metrics.cut_back(0.1, 2)
    rows = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert [row["epoch"] for row in rows] == [1, 2]


def test_tags_begin_with_the_measure_and_one_chart_has_all_densities(tmp_path):
    done = run(tmp_path, *TWO, "--eval_every", 1)
    (file,) = done.folder.glob("events.*")
    events = EventAccumulator(str(file), {"scalars": 0, "tensors": 0}).Reload()
    measures = {tag.partition("/")[0] for tag in events.Tags()["scalars"]}
    assert {"test_accuracy", "prompted_loss", "lr0", "lr1", "layer_density", "final"} <= measures
    at = {event.step: event.value for event in events.Scalars("final/clean")}
    rows = {round(1000 * (1 - row["density"])): row["clean"] for row in done.result["rows"]}
    assert at == pytest.approx(rows)
    layout = events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    assert b"test_accuracy/.*" in layout
    assert "_hparams_/session_start_info" in file.read_bytes().decode("latin-1")


def test_what_weights_and_biases_is_shown_and_that_it_may_fail(tmp_path, monkeypatch):
    shown, ended = [], []

    class Started:
        def log(self, numbers):
            shown.append(numbers)

        def finish(self):
            ended.append(True)

    fake = SimpleNamespace(init=lambda **options: shown.append(options) or Started())
    monkeypatch.setitem(sys.modules, "wandb", fake)
    done = run(tmp_path / "out", *QUICK, "--wandb", "sparse")
    assert shown[0]["project"] == "sparse" and shown[0]["config"]["seed"] == 7 and ended
    assert shown[1]["clean_loss/search/d0.1"] > 0
    assert shown[-1] == {"final/density": 0.1, "final/clean": done.result["rows"][0]["clean"]}
    monkeypatch.setitem(sys.modules, "wandb", None)
    failed = run(tmp_path / "other", *QUICK, "--wandb", "sparse")
    assert failed.code == 0 and failed.out.count("note: no W&B run (") == 1
    assert failed.folder.name == done.folder.name


# Folders


def labels(root: Path) -> list[tuple[str, int]]:
    """Path and label of each training image of a folder."""
    train = open_own_folders(root, 0.2).train
    names = [os.fsdecode(bytes(name)) for name in train.images.names]
    return list(zip(names, train.labels.tolist(), strict=True))


LINKS = {
    "to itself": ("a/again", "."),
    "to its class": ("a/deep/again", ".."),
    "to another class": ("a/other", "../b"),
    "to the part": ("a/part", ".."),
    "to the dataset": ("a/all", "../.."),
}


@pytest.mark.parametrize("kind", LINKS)
def test_a_link_to_what_is_reached_without_it_is_not_followed_and_is_told(tmp_path, kind):
    root = photos(tmp_path / "i")
    before, (place, target) = labels(root), LINKS[kind]
    link = root / "train" / place
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(target)
    (link.parent / "zz").symlink_to(target)  # two loops in a folder are 2^40 paths
    assert labels(root) == before
    done = call("--check_data", "--dataset", "imagefolder", "--data", root, "--workers", 0)
    assert done.code == 0 and f"not followed: 2 ({link}, " in done.out


def test_a_link_to_images_elsewhere_is_followed_once(tmp_path):
    root = photos(tmp_path / "i")
    (root / "train/a").rename(tmp_path / "store")
    (root / "train/a").symlink_to(tmp_path / "store")
    before = labels(root)
    assert len(before) == 12
    (root / "train/b/more").symlink_to(tmp_path / "store")
    assert labels(root) == before


def test_two_spellings_of_a_name_are_one_class(tmp_path):
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    for folder in (f"train/{composed}", f"train/{apart}", "train/tea", f"test/{apart}", "test/tea"):
        noise(tmp_path / folder / f"{len(folder)}.png", len(folder))
    splits = open_own_folders(tmp_path, 0.2)
    assert len(splits.train.classes) == 2 and splits.train.labels.bincount().tolist() == [2, 1]
    assert splits.test.labels.bincount().tolist() == [1, 1]


def test_a_link_above_one_that_was_followed_brings_the_rest(tmp_path):
    root = photos(tmp_path / "i")
    (root / "train/a").rename(tmp_path / "store")
    (tmp_path / "store/inner").mkdir()
    (tmp_path / "store/m00.jpg").rename(tmp_path / "store/inner/m00.jpg")
    (root / "train/a").symlink_to(tmp_path / "store/inner")
    (root / "train/z").symlink_to(tmp_path / "store")
    assert len(labels(root)) == 12


def test_a_link_to_the_other_part_is_not_followed_and_a_part_that_is_the_other_is_told(
    tmp_path, capsys
):
    root = photos(tmp_path / "i")
    before = labels(root)
    (root / "train/a/more").symlink_to("../../test")
    assert labels(root) == before
    shutil.rmtree(root / "test")
    (root / "test").symlink_to("train")
    labels(root)
    assert "tested on the images that it is trained on" in capsys.readouterr().out


def test_a_link_to_itself_is_no_folder(tmp_path):
    root = photos(tmp_path / "i")
    before = labels(root)
    (root / "train/loop").symlink_to("loop")
    assert labels(root) == before


def test_a_folder_that_cannot_be_listed_is_refused(tmp_path, monkeypatch):
    root, scandir = photos(tmp_path / "i"), os.scandir
    (root / "train/a/deep").mkdir()

    def refuses(path):
        if str(path).endswith("deep"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuses)
    with pytest.raises(DataError, match="train/a/deep .Permission denied.: make it readable"):
        labels(root)


@pytest.mark.parametrize("side", [8_200, 14_000])
def test_an_image_that_is_too_large_is_told_to_be_scaled_down(tmp_path, side):
    root = photos(tmp_path / "i")
    Image.new("1", (side, side)).save(root / "train/a/m00.jpg", format="png")
    done = train(tmp_path / "out", root)
    assert done.code == 4 and "too large: " in done.error and "scale it down" in done.error
    checked = call("--check_data", "--dataset", "imagefolder", "--data", root, "--workers", 0)
    assert checked.code == 4 and "scale them down" in checked.error


# Limits


@pytest.mark.parametrize("name", ["EMFILE", "ENFILE", "EAGAIN"])
def test_a_limit_of_the_system_names_what_helps_and_no_file(name):
    number = getattr(errno, name)
    line = one_line(OSError(number, os.strerror(number), "/some/file"))
    assert line.startswith(f"{os.strerror(number)}: ") and "/some/file" not in line
    assert any(word in line for word in ("ulimit", "end some"))


def test_a_thread_that_cannot_be_started_names_the_limit():
    assert "ulimit -u" in one_line(RuntimeError("can't start new thread"))


def test_lack_of_memory_of_the_system_names_flags_and_no_folder():
    line = one_line(OSError(errno.ENOMEM, "Cannot allocate memory"))
    assert "--batch_size" in line and os.getcwd() not in line


def test_an_error_of_the_system_names_a_file_only_if_it_was_one():
    assert os.getcwd() not in one_line(OSError(errno.EIO, "Input/output error"))
    assert one_line(OSError(errno.EIO, "Input/output error", "/a")).startswith("/a: Input")


def test_too_many_open_files_are_no_damage(tmp_path, monkeypatch):
    root = photos(tmp_path / "i")
    def none_left(*_, **__):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(Image, "open", none_left)
    words = ["--dataset", "imagefolder", "--data", root, "--workers", 0]
    for done in (train(tmp_path / "out", root), call("--check_data", *words),
                 train(tmp_path / "out", root, "--bad_images", "skip")):  # fmt: skip
        assert done.code == 1 and "raise the limit (ulimit -n)" in done.error


@pytest.mark.parametrize("what", ["--dry_run", "--check_data"])
def test_a_rest_of_one_image_is_told_before_a_run(tmp_path, what):
    words = ["--network", "test_machine:one_pixel", "--weights", "none", "--train_images", 61]
    done = run(tmp_path, *QUICK, *words, "--label_mapping_mode", "none", what)
    assert done.code == 2 and "a batch of 1 cannot be trained on" in done.error


def one_pixel(classes: int) -> torch.nn.Module:
    """A network whose BatchNorm sees one value of each image."""
    layers = torch.nn.AdaptiveAvgPool2d(1), torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4)
    return torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(4, classes))


# Launchers


def test_scripts_have_unix_lines_in_every_clone():
    scripts = subprocess.run(["git", "ls-files", "*.sh", "*.sbatch", "*.py"], cwd=ROOT, text=True,
                             capture_output=True, check=True).stdout.split()  # fmt: skip
    if not scripts:
        pytest.skip("no clone")
    words = ["git", "check-attr", "eol", *scripts]
    found = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert found.count(": eol: lf\n") == len(scripts)


def test_a_run_is_the_same_wherever_it_is(tmp_path):
    assert hashes(run(tmp_path / "a", *QUICK).folder) == hashes(run(tmp_path / "b", *QUICK).folder)
    assert only_run(tmp_path / "a").name == only_run(tmp_path / "b").name

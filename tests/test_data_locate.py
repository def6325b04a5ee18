"""Where data are looked for, what is said when they are not there, and downloads."""

import io
import os
import shutil
import tarfile
import zipfile
from contextlib import suppress
from dataclasses import replace
from urllib.error import URLError

import pytest
import torch
from test_data_specs import load, picture, write_idx
from torchvision.datasets.utils import extract_archive

from data import SPECS, DataConfig, load_data
from utils.config import parse_flags
from utils.errors import DataError, UsageError

UNPACKS = pytest.mark.skipif(
    not hasattr(tarfile, "data_filter"), reason="this Python would unpack archives unsafely"
)
ON_DISK = sorted(name for name in SPECS if name != "digits")


@pytest.fixture
def fetched(monkeypatch):
    """Make mnist's download a function of the test's; returns the setter."""

    def use(fetch):
        monkeypatch.setitem(SPECS, "mnist", replace(SPECS["mnist"], fetch=fetch))

    return use


def everything(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


@pytest.mark.parametrize("name", ON_DISK)
def test_a_missing_dataset_names_folder_source_and_size_in_one_line(tmp_path, name):
    with pytest.raises(DataError) as caught:
        load(name, tmp_path)
    message, spec = str(caught.value), SPECS[name]
    assert caught.value.exit_code == 4 and "\n" not in message
    assert all(part in message for part in (str(tmp_path / name), spec.source, spec.size))
    assert everything(tmp_path) == []


def test_a_folder_that_is_not_there_is_told_apart_from_one_without_the_images(tmp_path):
    for folder, told in ((tmp_path, False), (tmp_path / "absent", True)):
        with pytest.raises(DataError, match="mnist not found") as raised:
            load("mnist", folder, download=False)
        assert (f"({folder} does not exist)" in str(raised.value)) == told


def test_no_download_is_obeyed(tmp_path, fetched):
    fetched(lambda folder: write_idx(folder / "MNIST" / "raw", True))
    with pytest.raises(DataError, match="mnist not found"):
        load("mnist", tmp_path, download=False)


@UNPACKS
def test_a_download_lands_in_the_folder_of_the_dataset(tmp_path, fetched):
    fetched(lambda folder: write_idx(folder / "MNIST" / "raw", True))
    assert load("mnist", tmp_path / "new", download=True).test.images == 1
    assert (tmp_path / "new" / "mnist" / "MNIST" / "raw").is_dir()
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["mnist"]


@UNPACKS
def test_a_download_happens_once(tmp_path, fetched):
    calls = []
    fetched(lambda folder: calls.append(write_idx(folder / "MNIST" / "raw", True)))
    for _ in range(2):
        load("mnist", tmp_path, download=True)
    assert len(calls) == 1


@UNPACKS
@pytest.mark.parametrize("existing", [True, False])
def test_a_failed_download_leaves_nothing_and_says_why(tmp_path, fetched, existing):
    def fails(folder):
        write_idx(folder / "MNIST" / "raw", True)
        raise URLError("no\nroute")

    fetched(fails)
    root = tmp_path / "data"
    if existing:
        root.mkdir()
    before = everything(tmp_path)
    with pytest.raises(DataError, match="download failed .*no route") as caught:
        load("mnist", root, download=True)
    assert everything(tmp_path) == before and "\n" not in str(caught.value)


@UNPACKS
def test_an_interrupted_download_leaves_nothing(tmp_path, fetched):
    def stopped(folder):
        (folder / "half").write_bytes(b"x")
        raise KeyboardInterrupt

    fetched(stopped)
    with pytest.raises(KeyboardInterrupt):
        load("mnist", tmp_path, download=True)
    assert everything(tmp_path) == []


def unpacking(archive):
    """A download that fetches this archive and lets torchvision unpack it."""
    return lambda folder: extract_archive(shutil.copy(archive, folder), folder)


def tar_of(path, **members):
    """A tar file of one good member and of others given as attributes of their TarInfo."""
    with tarfile.open(path, "w:gz") as archive:
        for attributes in ({"name": "good.txt"}, *members.values()):
            info = tarfile.TarInfo()
            for name, value in attributes.items():
                setattr(info, name, value)
            info.size = 4 if info.isfile() else 0
            archive.addfile(info, io.BytesIO(b"data"))


def link(name, target, kind=tarfile.SYMTYPE):
    return {"name": name, "linkname": target, "type": kind}


OUTSIDE = {
    "above": {"a": {"name": "../evil.txt"}},
    "above, further in": {"a": {"name": "mnist/../../evil.txt"}},
    "link above": {"a": link("l", "..")},
    "link to an absolute path": {"a": link("l", "/tmp")},
    "through a chain of links": {"a": link("d", "."), "b": link("l", "d/..")},
    "hard link above": {"a": link("l", "../secret", tarfile.LNKTYPE)},
    "device": {"a": {"name": "null", "type": tarfile.CHRTYPE}},
    "absolute": {"a": {"name": "/tmp/evil.txt"}},
}


@pytest.mark.parametrize("case", OUTSIDE)
def test_a_tar_that_leads_outside_is_refused_and_nothing_of_it_stays(tmp_path, fetched, case):
    tar_of(tmp_path / "evil.tgz", **OUTSIDE[case])
    fetched(unpacking(tmp_path / "evil.tgz"))
    with pytest.raises(DataError, match="download failed"):
        load("mnist", tmp_path / "data", download=True)
    assert everything(tmp_path) == ["evil.tgz"]


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "a/../../evil.txt"])
def test_a_zip_that_leads_outside_writes_inside_alone(tmp_path, fetched, name):
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr(name, "data")
    fetched(unpacking(tmp_path / "evil.zip"))
    with suppress(DataError):
        load("mnist", tmp_path / "data" / "deep", download=True)
    written = [p for p in tmp_path.rglob("evil.txt")]
    assert all((tmp_path / "data" / "deep" / "mnist") in p.parents for p in written)
    assert not os.path.exists("/evil.txt")


@UNPACKS
@pytest.mark.parametrize("kind", ["tgz", "zip"])
def test_an_archive_that_stays_inside_is_unpacked(tmp_path, fetched, kind):
    write_idx(tmp_path / "made" / "raw", True)
    path = tmp_path / f"mnist.{kind}"
    if kind == "tgz":
        with tarfile.open(path, "w:gz") as archive:
            archive.add(tmp_path / "made", "MNIST")
            shortcut = tarfile.TarInfo("shortcut")
            shortcut.type, shortcut.linkname = tarfile.SYMTYPE, "MNIST/raw"
            archive.addfile(shortcut)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            for file in (tmp_path / "made" / "raw").iterdir():
                archive.write(file, f"MNIST/raw/{file.name}")
    fetched(unpacking(path))
    assert load("mnist", tmp_path / "data", download=True).test.images == 1


@UNPACKS
def test_archives_are_unpacked_as_ever_outside_of_downloads(tmp_path, fetched):
    before = tarfile.TarFile.extraction_filter
    fetched(lambda folder: pytest.fail("not reached"))
    with pytest.raises(BaseException, match="not reached"):
        load("mnist", tmp_path, download=True)
    assert tarfile.TarFile.extraction_filter == before


def test_data_half_there_are_not_downloaded_over(tmp_path, fetched):
    fetched(lambda folder: pytest.fail("a download was started"))
    half = tmp_path / "mnist" / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"x")
    with pytest.raises(DataError, match="incomplete"):
        load("mnist", tmp_path, download=True)
    assert half.read_bytes() == b"x"


def test_the_folder_of_the_dataset_comes_before_the_folder_itself(tmp_path):
    picture(tmp_path / "train" / "outer" / "0.png", 0)
    picture(tmp_path / "test" / "outer" / "0.png", 0)
    for split in ("train", "test"):
        picture(tmp_path / "imagefolder" / split / "inner" / "0.png", 0)
    assert load("imagefolder", tmp_path).classes == ("inner",)


@pytest.mark.parametrize("folder", ["dataset", "datasets"])
def test_the_default_folders(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    write_idx(tmp_path / folder / "mnist", True)
    config = DataConfig(dataset="mnist", workers=0, download=False)
    assert load_data(config, 8, 4, torch.device("cpu")).test.images == 1


def test_every_dataset_that_torchvision_can_fetch_has_its_download():
    assert {name for name, spec in SPECS.items() if spec.fetch} == {
        "cifar10", "cifar100", "flowers102_official", "dtd", "food101", "oxfordpets", "svhn",
        "gtsrb", "eurosat", "mnist", "fashion_mnist"}  # fmt: skip


def test_flags_and_their_limits():
    argv = "--dataset digits --data x --val_fraction 0.5 --cache_gb 0 --workers 0 --no_download"
    config, _ = parse_flags(DataConfig(), argv.split())
    assert config == DataConfig("digits", "x", workers=0, val_fraction=0.5, download=False,
                                cache_gb=0.0)  # fmt: skip
    for wrong in ("--val_fraction 0.51", "--workers -1", "--batch_size 0", "--cache_gb nan",
                  "--input_size 0", "--train_images -1", "--dataset mnits"):  # fmt: skip
        with pytest.raises(UsageError):
            parse_flags(DataConfig(), wrong.split())

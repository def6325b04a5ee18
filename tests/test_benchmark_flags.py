"""What the benchmarks refuse before they measure anything: one line, exit code 2."""

import gzip
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks import data, job, scaling, step

REFUSED = [
    (scaling, "--epochs 1", "argument --epochs: 1 is out of range: it must be at least 2"),
    (scaling, "--repeats 0", "argument --repeats: 0 is out of range: it must be at least 1"),
    (scaling, "--images 64,0", "argument --images: 0 is out of range"),
    (scaling, "--images 64,many", "argument --images: 'many' is not an integer"),
    (scaling, "--networks resnet18,resnet19", "argument --networks: 'resnet19': choose from"),
    (scaling, "--networks resnet20,vgg16 --size 8", "vgg16 cannot train on images of 8 px"),
    (scaling, "--plot nowhere/plot.png", "is not a file in a folder that there is"),
    (scaling, "--plot plot.docx", "'plot.docx' does not end in .png, .pdf, .svg"),
    (step, "--repeats 0", "argument --repeats: 0 is out of range: it must be at least 1"),
    (step, "--iterations 0", "argument --iterations: 0 is out of range"),
    (step, "--threads 0", "argument --threads: 0 is out of range"),
    (step, "--density 0", "argument --density: 0 is out of range: it must be above 0"),
    (step, "--density 1.5", "argument --density: 1.5 is out of range"),
    (step, "--size 32 --batch 1", "resnet18 cannot train on one image of 32 px"),
    (step, "--profile nothing", "argument --profile: invalid choice: 'nothing'"),
    (step, "--net resnet20", "unrecognized arguments: --net resnet20"),
    (data, "--repeats 0", "argument --repeats: 0 is out of range: it must be at least 1"),
    (data, "--sizes 32,", "argument --sizes: '' is not an integer"),
    (data, "--batch 0", "argument --batch: 0 is out of range"),
    (data, "--images -1", "argument --images: -1 is out of range"),
    (job, "--seeds 7,-1", "argument --seeds: -1 is out of range: it must be at least 0"),
    (job, "--seeds seven", "argument --seeds: 'seven' is not an integer"),
    (job, "--case c", "argument --case: invalid choice: 'c'"),
]


@pytest.fixture
def measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("it went on to measure")

    for module, name in ((scaling, "step_row"), (step, "measure"), (data, "compare"),
                         (job, "measure"), (step.profiling, "profile")):  # fmt: skip
        monkeypatch.setattr(module, name, fail)


@pytest.mark.usefixtures("measures_nothing")
@pytest.mark.parametrize(
    ("benchmark", "flags", "message"),
    REFUSED,
    ids=[f"{module.__name__.rpartition('.')[2]} {flags}" for module, flags, _ in REFUSED],
)
def test_a_value_that_cannot_be_measured_is_refused_in_one_line(
    benchmark: ModuleType, flags: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        benchmark.main(flags.split())
    said = capsys.readouterr()
    assert end.value.code == 2 and not said.out
    (line,) = said.err.splitlines()
    assert line.startswith("error: ") and message in line


def test_a_job_names_the_file_that_is_missing(tmp_path: Path) -> None:
    for kind in ("images-idx3", "labels-idx1"):
        with gzip.open(tmp_path / f"train-{kind}-ubyte.gz", "wb") as file:
            file.write(bytes(16))
    with pytest.raises(SystemExit, match=r"^error: .*t10k-images-idx3-ubyte\.gz.*give --data"):
        job.main(["--data", str(tmp_path)])


@pytest.mark.parametrize("benchmark", [step, data, job, scaling])
def test_help_names_the_flags(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        benchmark.main(["--help"])
    assert end.value.code == 0 and "--" in capsys.readouterr().out


def test_the_help_of_a_job_says_how_long_each_case_takes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        job.main(["--help"])
    said = capsys.readouterr().out
    assert "--case a" in said and "--case b" in said and "minute" in said

"""What the benchmarks refuse before they measure anything: an error and exit code 2."""

from types import ModuleType

import pytest

from benchmarks import data, step

REFUSED = [
    (step, "--repeats 0", "argument --repeats: '0' is not a whole number above 0"),
    (step, "--iterations many", "argument --iterations: 'many' is not a whole number above 0"),
    (step, "--threads -1", "argument --threads: '-1' is not a whole number above 0"),
    (step, "--density 0", "argument --density: invalid parse_density value: '0'"),
    (step, "--density 1.5", "argument --density: invalid parse_density value: '1.5'"),
    (step, "--size 32 --batch 1", "resnet18 cannot train on one image of 32 px"),
    (step, "--network resnet19", "argument --network: invalid choice: 'resnet19'"),
    (data, "--repeats 0", "argument --repeats: '0' is not a whole number above 0"),
    (data, "--sizes 32,", "argument --sizes: '' is not a whole number above 0"),
    (data, "--images 0", "argument --images: '0' is not a whole number above 0"),
]


@pytest.fixture
def measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("it went on to measure")

    for module, name in ((step, "measure"), (data, "compare")):
        monkeypatch.setattr(module, name, fail)


@pytest.mark.usefixtures("measures_nothing")
@pytest.mark.parametrize(
    ("benchmark", "flags", "message"),
    REFUSED,
    ids=[f"{module.__name__.rpartition('.')[2]} {flags}" for module, flags, _ in REFUSED],
)
def test_a_value_that_cannot_be_measured_is_refused(
    benchmark: ModuleType, flags: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        benchmark.main(flags.split())
    said = capsys.readouterr()
    assert end.value.code == 2 and not said.out
    assert message in said.err.splitlines()[-1]


@pytest.mark.parametrize("benchmark", [step, data])
def test_help_names_the_flags(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        benchmark.main(["--help"])
    assert end.value.code == 0 and "--" in capsys.readouterr().out

"""Tables and pictures of finished runs, from results written by hand."""

import json
import os
from pathlib import Path

import pytest
from report_runs import call

import report
from report.panel import panels
from report.runs import load_runs
from report.text import summary_table
from runfolder.results import (
    curves_figure,
    draw_run,
    find_dense,
    read_results,
    run_folder,
    save_figure,
    sparsity,
)
from utils.errors import VPNsError

HEADER = "density,real_density,kept,prunable,before,after_search,clean,prompted,passes\n"
CSV = HEADER + (
    "0.2,0.2000004,54000,270000,12.5,88.25,98.3333,97.5,32\n"
    "0.0225,0.0225,6075,270000,9.0,70.5,91.0,,32\n"
)
DENSE = {"density": 1, "real_density": 1, "clean": 99.1667, "prompted": None}


def make_run(root: Path, method: str, name: str, text: str = CSV, **config: object) -> Path:
    run = root / f"resnet20-digits-{method}" / name
    run.mkdir(parents=True)
    (run / "results.csv").write_text(text)
    (run / "run.json").write_text('{"state": "done"}')
    (run / "config.json").write_text(json.dumps(config))
    return run


def one_row(clean: float, density: str = "0.1") -> str:
    return HEADER + f"{density},0.1,1,10,0,0,{clean},50.0,2\n"


# Reading results


def test_results_are_numbers_and_empty_cells_are_none(tmp_path):
    rows = read_results(make_run(tmp_path, "vpns", "seed7-aa"))
    assert [row["density"] for row in rows] == [0.2, 0.0225]
    assert (rows[0]["kept"], rows[1]["prompted"]) == (54000, None)


@pytest.mark.parametrize(
    "line",
    [
        "0.2,x,1,1,1,1,1,1,1\n", "0.2,0.2\n", "1,1,1,1,1,1,1,1,1,1\n", "0,1,1,1,1,1,1,1,1\n",
        "0.2,1,1,1,1,1,nan,1,1\n", "0.2,1,1,1,1,1,,1,1\n",
    ],
)  # fmt: skip
def test_damaged_results_are_refused(tmp_path, line):
    with pytest.raises(VPNsError, match="is damaged"):
        read_results(make_run(tmp_path, "vpns", "seed7-aa", HEADER + line))


def test_cell_without_end_is_damage(tmp_path):
    with pytest.raises(VPNsError, match="is damaged"):
        read_results(make_run(tmp_path, "vpns", "seed7-aa", "density,clean\n0.2," + "1" * 200_000))


def test_folder_without_results_is_refused(tmp_path):
    with pytest.raises(VPNsError, match=r"no readable results\.csv"):
        read_results(tmp_path)


@pytest.mark.parametrize(("density", "percent"), [(0.2, 80), (0.0225, 97.75), (1, 0), (0.3, 70)])
def test_sparsity_has_no_binary_dust(density, percent):
    assert sparsity(density) == percent


def test_run_folder_comes_from_the_last_result_line_of_a_log(tmp_path):
    log, folder = tmp_path / "run.log", tmp_path / "a folder"
    folder.mkdir()
    log.write_text(f'RESULT {{"run": "old"}}\nepoch 1\nRESULT {{"run": "{folder}"}}\n')
    assert run_folder(log) == folder


def test_log_of_a_run_that_is_elsewhere_is_refused(tmp_path):
    (tmp_path / "run.log").write_text('RESULT {"run": "elsewhere"}\n')
    with pytest.raises(VPNsError, match="names the run elsewhere, which is not here"):
        run_folder(tmp_path / "run.log")


@pytest.mark.parametrize("text", ["epoch 1\n", "RESULT {broken\n", 'RESULT {"accuracy": 1}\n'])
def test_log_without_a_result_is_refused(tmp_path, text):
    log = tmp_path / "run.log"
    log.write_text(text)
    with pytest.raises(VPNsError, match="neither a run folder nor the log"):
        run_folder(log)


# The dense run that belongs to a run


def test_dense_row_is_that_of_the_same_seed(tmp_path):
    run = make_run(tmp_path, "vpns", "seed7-aa")
    make_run(tmp_path, "dense", "seed77-bb", one_row(11))
    make_run(tmp_path, "dense", "seed7-cc", one_row(99))
    assert find_dense(run)["clean"] == 99


@pytest.mark.parametrize("state", ["running", "failed"])
def test_unfinished_dense_run_does_not_count(tmp_path, state):
    run = make_run(tmp_path, "vpns", "seed7-aa")
    dense = make_run(tmp_path, "dense", "seed7-bb", one_row(99))
    (dense / "run.json").write_text(json.dumps({"state": state}))
    assert find_dense(run) is None


def test_dense_run_of_another_network_does_not_count(tmp_path):
    run = make_run(tmp_path, "vpns", "seed7-aa")
    make_run(tmp_path, "dense", "seed7-bb").parent.rename(tmp_path / "resnet18-digits-dense")
    assert find_dense(run) is None


def test_newest_of_several_dense_runs_counts(tmp_path):
    run = make_run(tmp_path, "vpns", "seed7-aa")
    for age, clean in ((10, 98), (0, 99), (20, 97)):
        dense = make_run(tmp_path, "dense", f"seed7-{clean}", one_row(clean))
        os.utime(dense / "run.json", (1e9 - age, 1e9 - age))
    assert find_dense(run)["clean"] == 99


def test_dense_run_with_the_same_settings_counts_before_a_newer_one(tmp_path):
    run = make_run(tmp_path, "vpns", "seed7-aa", epochs=8, prompt_method="pad")
    for age, clean, epochs in ((10, 98, 8), (0, 40, 1)):
        dense = make_run(tmp_path, "dense", f"seed7-{epochs}", one_row(clean), epochs=epochs)
        os.utime(dense / "run.json", (1e9 - age, 1e9 - age))
    assert find_dense(run)["clean"] == 98


def test_dense_run_has_no_dense_line(tmp_path):
    assert find_dense(make_run(tmp_path, "dense", "seed7-aa")) is None


# Tables


def test_table_of_a_run_starts_with_the_dense_network(tmp_path):
    rows = read_results(make_run(tmp_path, "vpns", "seed7-aa"))
    assert report.curves_table(rows, DENSE) == (
        "sparsity   real  clean  prompted\n"
        "dense      0.00  99.17         -\n"
        "80        80.00  98.33     97.50\n"
        "97.75     97.75  91.00         -"
    )


def test_table_of_a_run_without_a_dense_network_has_no_such_line(tmp_path):
    rows = read_results(make_run(tmp_path, "vpns", "seed7-aa"))
    assert [line.split()[0] for line in report.curves_table(rows, None).splitlines()] == [
        "sparsity", "80", "97.75",
    ]  # fmt: skip


def summary(*runs: Path) -> str:
    return summary_table(panels(load_runs(runs)[0]))


def test_summary_has_mean_and_sample_deviation_of_each_method(tmp_path):
    runs = [make_run(tmp_path, "vpns", f"seed{s}-a", one_row(90 + s)) for s in (1, 2, 3)]
    runs.append(make_run(tmp_path, "hydra", "seed1-a", one_row(80)))
    assert summary(*runs) == (
        "run                    sparsity          clean       prompted  seeds\n"
        "resnet20-digits-vpns         90  92.00 +- 1.00  50.00 +- 0.00      3\n"
        "resnet20-digits-hydra        90          80.00          50.00      1"
    )


def test_run_named_twice_counts_once(tmp_path):
    run = make_run(tmp_path, "vpns", "seed1-a", one_row(90))
    assert summary(run, run).splitlines()[-1].endswith("1")


def test_sparsities_are_in_numerical_order(tmp_path):
    text = one_row(90, "0.02") + one_row(91, "0.95").removeprefix(HEADER)
    lines = summary(make_run(tmp_path, "vpns", "seed1-a", text)).splitlines()
    assert [line.split()[1] for line in lines[1:]] == ["5", "98"]


def test_command_prints_the_table_and_where_the_files_are(tmp_path, capsys):
    run = make_run(tmp_path, "vpns", "seed7-aa")
    (run / "curves.png").touch()
    assert call("table", run) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"run:    {run}", f"curves: {run / 'curves.png'}",
    ]  # fmt: skip


def test_command_reports_a_wrong_path_in_one_line(tmp_path, capsys):
    assert call("table", tmp_path) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} has no readable results.csv")


# Curves


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return read_results(make_run(tmp_path_factory.mktemp("runs"), "vpns", "seed7-aa"))


def lines_of(figure) -> dict[str, tuple[list[float], list[float], str]]:
    """Label to (x, y, line style) of every line in the picture."""
    (axes,) = figure.axes
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata()), line.get_linestyle())
        for line in axes.get_lines()
    }


def test_curves_show_clean_prompted_and_dense(rows):
    lines = lines_of(curves_figure(rows, DENSE, "title"))
    assert lines["clean"] == ([80, 97.75], [98.3333, 91.0], "-")
    assert lines["prompted"] == ([80], [97.5], "--")
    assert lines["dense, clean (99.17)"][1:] == ([99.1667, 99.1667], ":")


def test_curves_without_a_dense_run_or_a_prompt_have_one_line(rows):
    assert list(lines_of(curves_figure(rows[1:], None, "title"))) == ["clean"]


def test_curves_are_in_the_order_of_sparsity(rows):
    assert lines_of(curves_figure(rows[::-1], None, "title"))["clean"][0] == [80, 97.75]


def test_curves_are_a_whole_png_with_equal_bytes_each_time(rows, tmp_path):
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    for path in (first, second):
        save_figure(curves_figure(rows, DENSE, "ResNet-20 on digits"), path)
    data = first.read_bytes()
    assert data == second.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n") and data.endswith(b"IEND\xaeB`\x82")
    assert b"Software" not in data and b"tIME" not in data


def test_ticks_of_a_short_list_are_its_sparsities(rows):
    (axes,) = curves_figure(rows, DENSE, "title").axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["80", "97.75"]


def test_curves_can_be_drawn_before_the_first_result(tmp_path):
    save_figure(curves_figure([], None, "nothing yet"), tmp_path / "curves.png")
    assert [file.name for file in tmp_path.iterdir()] == ["curves.png"]


def test_picture_of_a_run_has_its_dense_line(tmp_path):
    run = make_run(tmp_path, "vpns", "seed7-aa")
    draw_run(run)
    alone = (run / "curves.png").read_bytes()
    make_run(tmp_path, "dense", "seed7-bb", one_row(99))
    draw_run(run)
    assert (run / "curves.png").read_bytes() != alone

"""The comparing report, from runs written by hand: numbers, gaps, files, picture."""

import csv
import json
import sys

import pytest
from report_runs import HEADER, call, make_run, prompt, row, set_state

from pruning import METHODS
from report.panel import mean_of, panels
from report.picture import comparison_figure
from report.runs import load_runs
from report.tables import accuracy_rows, comparison_rows, cost_rows, rest_rows

FILES = ["accuracy_vs_sparsity.png", "report.md", "table.csv", "table.tex"]


@pytest.fixture
def grid(tmp_path):
    """VPNs lacks seed 17 at 95 %, the control has one seed and one sparsity."""
    for seed, clean in ((7, 90), (9, 92), (17, 94)):
        rest = {} if seed == 17 else {0.05: clean - 10}
        make_run(tmp_path, "vpns", seed, {0.1: clean} | rest)
    for seed, first, second in ((7, 89, 79), (9, 92, 80), (17, 91, 75)):
        make_run(tmp_path, "hydra", seed, {0.1: first, 0.05: second})
    make_run(tmp_path, "vpns", 7, {0.1: 91}, pad_size=0)
    for seed in (7, 9, 17):
        make_run(tmp_path, "dense", seed, {1: 98 + seed % 2})
    return tmp_path


def panel_of(root, accuracy="clean"):
    (panel,) = panels(load_runs([root])[0], accuracy)
    return panel


def report_of(root, *options: str) -> str:
    assert call(root, "--out", root / "out", *options) == 0
    return (root / "out/report.md").read_text()


def section(text: str, title: str) -> str:
    return text.split(f"### {title}\n")[1].split("\n#")[0]


# Arithmetic


def test_summary_has_the_sample_deviation():
    assert mean_of([1.0, None, 3.0]) == (2.0, pytest.approx(2**0.5), 2)


def test_summary_of_one_value_has_no_deviation():
    assert mean_of([4.0]) == (4.0, None, 1)


def test_binary_fractions_make_no_winner(tmp_path):
    make_run(tmp_path, "vpns", 7, {0.1: 0.3})
    make_run(tmp_path, "hydra", 7, {0.1: 0.1 + 0.2})
    assert comparison_rows(panel_of(tmp_path), "vpns")[1][2:5] == ["0", "1", "0"]


def test_nothing_in_common_is_no_difference(tmp_path):
    make_run(tmp_path, "vpns", 7, {0.1: 90})
    make_run(tmp_path, "hydra", 9, {0.1: 80})
    assert comparison_rows(panel_of(tmp_path), "vpns")[1] == ["hydra", *["-"] * 5]


# Tables


def test_accuracy_rows_has_mean_deviation_and_gaps(grid):
    assert accuracy_rows(panel_of(grid), "clean") == [
        ["method", "0 %", "90 %", "95 %"],
        ["dense", "99.00 ± 0.00", "", ""],
        ["vpns", "", "**92.00 ± 2.00**", "**81.00 ± 1.41 (n=2)**"],
        ["vpns, pad 0", "", "91.00 ± - (n=1)", "-"],
        ["hydra", "", "90.67 ± 1.53", "78.00 ± 2.65"],
    ]


def test_comparison_rows_pairs_seeds_and_sparsities(grid):
    assert comparison_rows(panel_of(grid), "vpns") == [
        ["method", "all", "wins", "ties", "losses", "90 %", "95 %"],
        ["vpns, pad 0", "+1.00 ± -", "1", "0", "0", "+1.00 ± -", "-"],
        ["hydra", "-1.40 ± 0.51", "0", "1", "4", "-1.33 ± 0.88", "-1.50 ± 0.50"],
    ]


def test_cost_rows_has_passes_and_seconds(grid):
    assert cost_rows(panel_of(grid))[:3] == [
        ["method", "0 %", "90 %", "95 %", "seconds a run"],
        ["dense", "60", "", "", "12.5"],
        ["vpns", "", "60", "60", "12.5"],
    ]


def test_lth_has_a_table_of_its_own_for_sparsities_of_its_own(tmp_path):
    make_run(tmp_path, "vpns", 7, {0.1: 90})
    make_run(tmp_path, "lth", 7, {0.8: 95, 0.64: 94, 0.1: 89})
    panel = panel_of(tmp_path)
    assert panel.levels == [90]
    lth = panel.series[1]
    assert rest_rows(panel, lth) == [["method", "20 %", "36 %"], ["lth", "95.00 ± -", "94.00 ± -"]]


def test_prompted_accuracies_stand_in_a_table_beside(tmp_path):
    prompt(make_run(tmp_path, "vpns", 7, {}), 0.1, 90, 88.5)
    make_run(tmp_path, "hydra", 7, {0.1: 91})
    assert accuracy_rows(panel_of(tmp_path), "prompted") == [
        ["method", "90 %"], ["vpns", "88.50 ± -"],
    ]  # fmt: skip


def test_prompted_accuracy_can_be_the_one_compared(tmp_path):
    prompt(make_run(tmp_path, "vpns", 7, {}), 0.1, 90, 88.5)
    make_run(tmp_path, "hydra", 7, {0.1: 91})
    rows = comparison_rows(panel_of(tmp_path, "prompted"), "vpns")
    assert rows[1][:2] == ["hydra", "+2.50 ± -"]


# report.md


def test_missing_cells_are_listed(grid):
    assert section(report_of(grid), "Missing").split("\n")[1:] == [
        "- vpns, seed 17: 95 %",
        "- vpns, pad 0, seed 7: 95 %",
        "- vpns, pad 0, seed 9: 90 %, 95 %",
        "- vpns, pad 0, seed 17: 90 %, 95 %",
        "",
    ]


def test_method_without_any_result_stays_visible(tmp_path):
    make_run(tmp_path, "vpns", 7, {0.1: 90})
    failed = make_run(tmp_path, "snip", 7, {})
    (failed / "results.csv").unlink()
    set_state(failed, "failed", "loss is not finite")
    text = report_of(tmp_path)
    assert "| snip | - | - |" in text
    assert f"- resnet20-digits-snip/{failed.name} is failed: loss is not finite" in text


def test_complete_runs_have_no_list_of_missing_cells(tmp_path):
    make_run(tmp_path, "vpns", 7, {0.1: 90, 0.05: 80})
    assert "### Missing" not in report_of(tmp_path)


def test_each_network_and_dataset_has_a_section(tmp_path):
    for dataset in ("digits", "mnist"):
        make_run(tmp_path, "vpns", 7, {0.1: 90}, dataset=dataset)
    make_run(tmp_path, "hydra", 7, {0.1: 90}, dataset="mnist")
    text = report_of(tmp_path, "--reference", "hydra")
    titles = [line for line in text.split("\n") if line.startswith("## resnet20")]
    assert titles == ["## resnet20 on digits, seed 7", "## resnet20 on mnist, seed 7"]
    assert "No run of hydra here." in text


def test_reference_can_be_chosen(grid):
    assert "| vpns | +1.40 ± 0.51 |" in section(
        report_of(grid, "--reference", "hydra"), "Compared with hydra"
    )


def test_first_variant_is_the_reference_when_there_is_no_plain_vpns(tmp_path):
    make_run(tmp_path, "vpns", 7, {0.1: 90}, pad_size=0)
    make_run(tmp_path, "hydra", 7, {0.1: 90})
    assert "### Compared with vpns, pad 0\n" in report_of(tmp_path)


def test_commands_repeat_every_run(grid):
    text = report_of(grid)
    (shared,) = (line for line in text.split("\n") if line.startswith("shared=("))
    assert "--epochs 8" in shared and "--weight_lr 0.01" in shared
    assert "save_dir" not in text and str(grid) not in text
    assert 'for seed in 7; do\n    python main_vpns.py --seed "$seed" "${shared[@]}" --pad' in text


def test_density_that_was_added_later_is_in_the_command(tmp_path):
    make_run(tmp_path, "vpns", 7, {0.1: 90, 0.02: 60})
    assert "--density_list 1.0,0.1,0.05,0.02" in report_of(tmp_path)


def test_versions_and_hardware_are_stated(grid):
    line = "- 10 runs: accelerator none, cores 2, python 3.12.0, torch 2.14.1\n"
    assert report_of(grid).endswith(line)


def test_papers_numbers_stand_beside_ours(tmp_path):
    make_run(tmp_path, "vpns", 7, {0.1: 80}, network="resnet18", dataset="cifar100")
    assert "| vpns | 83.31 ± 0.20 |" in section(report_of(tmp_path), "The paper's numbers")


@pytest.mark.parametrize(("dataset", "options"), [("digits", []), ("cifar100", ["--no-paper"])])
def test_papers_numbers_are_left_out(tmp_path, dataset, options):
    make_run(tmp_path, "vpns", 7, {0.1: 80}, network="resnet18", dataset=dataset)
    assert "paper's numbers" not in report_of(tmp_path, *options)


# The other files


def test_csv_has_exact_numbers_and_the_papers(tmp_path):
    for seed, clean in ((7, 80.1234), (9, 81)):
        make_run(
            tmp_path, "vpns", seed, {0.1: clean, 0.2: 82}, network="resnet18", dataset="cifar100"
        )
    report_of(tmp_path)
    with open(tmp_path / "out/table.csv", newline="") as file:
        rows = {line["sparsity"]: line for line in csv.DictReader(file)}
    assert rows["90"] == {
        "network": "resnet18", "dataset": "cifar100", "method": "vpns", "sparsity": "90",
        "seeds": "7 9", "n": "2", "clean_mean": "80.5617", "clean_std": "0.6198",
        "prompted_mean": "", "prompted_std": "", "passes": "60", "seconds_a_run": "12.5",
        "paper": "80.58", "paper_std": "0.37",
    }  # fmt: skip


def test_csv_keeps_missing_cells(grid):
    report_of(grid)
    cells = ["resnet20", "digits", "vpns, pad 0", "95", "", "0", *[""] * 5, "12.5", "", ""]
    with open(grid / "out/table.csv", newline="") as file:
        assert cells in csv.reader(file)


def test_latex_escapes_and_marks(grid):
    report_of(grid)
    text = (grid / "out/table.tex").read_text()
    assert r"{}vpns &  & \textbf{92.00 $\pm$ 2.00} & \textbf{81.00 $\pm$ 1.41 (n=2)} \\" in text
    assert r"vpns, pad 0 &  & 91.00 $\pm$ - (n=1) & -- \\" in text
    assert r"test accuracy (\%)" in text


def test_same_runs_give_the_same_bytes_in_any_order(grid, tmp_path_factory):
    runs = [str(run) for run in sorted(grid.glob("*/seed*"))]
    out = tmp_path_factory.mktemp("out")
    for name, paths in (("a", runs), ("b", runs[::-1] + runs[:1])):
        assert call(*paths, "--out", out / name) == 0
    for name in FILES:
        assert (out / "a" / name).read_bytes() == (out / "b" / name).read_bytes()
    assert sorted(file.name for file in (out / "a").iterdir()) == FILES


# The picture


def names_of(axes) -> list[str]:
    return sorted(line.get_label() for line in axes.get_lines())


def test_picture_has_as_many_curves_as_methods_and_the_dense_line(grid):
    (axes,) = comparison_figure([panel_of(grid)], paper=True).axes
    assert names_of(axes) == ["dense", "hydra", "vpns", "vpns, pad 0"]


def test_every_method_has_a_line_of_its_own_colour(tmp_path):
    for method in METHODS:
        make_run(tmp_path, method, 7, {1: 99} if method == "dense" else {0.1: 90, 0.05: 80})
    figure = comparison_figure([panel_of(tmp_path)], paper=True)
    (axes,), (legend,) = figure.axes, figure.legends
    assert names_of(axes) == sorted(METHODS)
    assert len({line.get_color() for line in axes.get_lines()}) == len(METHODS)
    assert [text.get_text() for text in legend.get_texts()] == [
        "dense", *(name for name in METHODS if name != "dense"),
    ]  # fmt: skip


def test_band_is_one_standard_deviation(grid):
    (axes,) = comparison_figure([panel_of(grid)], paper=False).axes
    color = METHODS["hydra"].curve[0]
    (band,) = (b for b in axes.collections if tuple(b.get_facecolor()[0][:3]) == rgb(color))
    heights = sorted({y for x, y in band.get_paths()[0].vertices if x == 90})
    assert heights == pytest.approx([90.6667 - 1.5275, 90.6667 + 1.5275], abs=1e-3)


def rgb(color: str) -> tuple[float, ...]:
    return tuple(int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))


@pytest.mark.parametrize(
    ("paper", "names"),
    [(True, ["dense", "dense, paper", "omp", "omp, paper"]), (False, ["dense", "omp"])],
)
def test_papers_curve_is_dashed_in_the_same_colour(tmp_path, paper, names):
    place = {"network": "resnet18", "dataset": "dtd"}
    make_run(tmp_path, "omp", 7, {0.1: 60, 0.05: 50}, **place)
    make_run(tmp_path, "dense", 7, {1: 67}, **place)
    (axes,) = comparison_figure([panel_of(tmp_path)], paper).axes
    assert names_of(axes) == names
    for line in axes.get_lines():
        assert (line.get_linestyle() == "--") == line.get_label().endswith("paper")
        assert line.get_color() == METHODS[line.get_label().removesuffix(", paper")].curve[0]


def test_each_network_and_dataset_has_a_panel_under_one_legend(tmp_path):
    for dataset in ("digits", "dtd", "mnist", "svhn"):
        make_run(tmp_path, "vpns", 7, {0.1: 60}, dataset=dataset)
    shown = panels(load_runs([tmp_path])[0])
    figure = comparison_figure(shown, paper=True)
    assert [axes.get_title() for axes in figure.axes] == [panel.title for panel in shown]
    assert len(figure.axes) == 4 and len(figure.legends) == 1


def test_variants_of_a_method_share_its_colour_but_no_line(grid):
    (axes,) = comparison_figure([panel_of(grid)], paper=False).axes
    first, second = (line for line in axes.get_lines() if line.get_label().startswith("vpns"))
    assert first.get_color() == second.get_color()
    assert first.get_linestyle() != second.get_linestyle()


def test_curve_lies_at_the_sparsities_where_the_axis_is_stretched(tmp_path):
    make_run(tmp_path, "vpns", 7, {0.01: 70, 0.1: 90, 0.05: 80})
    (axes,) = comparison_figure([panel_of(tmp_path)], paper=False).axes
    (line,) = axes.get_lines()
    assert list(line.get_xdata()) == [90, 95, 99]
    low, high = axes.get_xlim()
    assert low < 90 and 99 < high < 100
    assert [text.get_text() for text in axes.get_xticklabels()] == ["90", "95", "99"]


@pytest.mark.parametrize("method", ["dense", "snip"])
def test_picture_can_be_drawn_without_a_curve(tmp_path, method):
    make_run(tmp_path, method, 7, {1: 99} if method == "dense" else {})
    report_of(tmp_path)
    assert (tmp_path / "out/accuracy_vs_sparsity.png").stat().st_size > 1000


# The command


def test_command_prints_the_table_and_the_path(grid, capsys):
    report_of(grid)
    lines = capsys.readouterr().out.splitlines()
    assert "resnet20-digits-vpns               90  92.00 +- 2.00         -      3" in lines
    assert lines[-1] == f"report: {grid / 'out/report.md'}"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["RUNS"], 2, "--out DIR is missing"),
        ([], 2, "the following arguments are required: RUNS"),
        (["table"], 2, "table needs at least one run"),
        (["RUNS", "--out", "OUT", "--reference", "omg"], 2, "--reference 'omg' is none of"),
        (["RUNS", "--out", "OUT", "--accuracy", "x"], 2, "invalid choice: 'x'"),
        (["RUNS/nothing", "--out", "OUT"], 1, "neither a run folder nor the log"),
        (["RUNS", "--out", "RUNS/a file/x"], 1, "choose another folder with --out"),
    ],
)
def test_mistakes_end_in_one_line(grid, capsys, words, code, message):
    (grid / "a file").touch()
    words = [w.replace("RUNS", str(grid)).replace("OUT", str(grid / "out")) for w in words]
    assert call(*words) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


@pytest.mark.parametrize("wrong", [{"network": [1]}, {"density_list": None}, {"epochs": {"a": 1}}])
def test_settings_that_are_none_stop_the_report(grid, capsys, wrong):
    run = make_run(grid, "snip", 7, {0.1: 90})
    path = run / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | wrong))
    assert call(grid, "--out", grid / "out") == 1
    assert f"{path} has no such value of" in capsys.readouterr().err


def test_runs_that_differ_in_a_list_are_told_apart(grid):
    for steps in ([0.5], [0.7]):
        make_run(grid, "snip", 7, {0.1: 90}, decreasing_step=steps)
    assert call(grid, "--out", grid / "out") == 0


def test_damaged_results_stop_the_report(grid, capsys):
    run = make_run(grid, "snip", 7, {})
    (run / "results.csv").write_text(HEADER + row(0.1, 90).replace("90", "ninety"))
    assert call(grid, "--out", grid / "out") == 1
    assert "is damaged" in capsys.readouterr().err
    assert not (grid / "out").exists()


def test_a_picture_that_cannot_be_drawn_leaves_the_tables(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "report.picture", None)
    make_run(tmp_path / "runs", "vpns", 7, {0.1: 90})
    assert call(tmp_path / "runs", "--out", tmp_path / "report") == 0
    assert "note: no picture (" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == FILES[1:]


def test_size_and_arithmetic_are_means_over_the_seeds(tmp_path):
    head = "network,dataset,method,seed," + HEADER.strip() + ",macs,packed_bytes\n"
    for seed, macs in ((7, 1000), (9, 3000)):
        made = make_run(tmp_path, "vpns", seed, {0.1: 90})
        line = f"resnet20,digits,vpns,{seed},0.1,0.1,26834,268336,0,0,90,,60,{macs},2048\n"
        (made / "results.csv").write_text(head + line)
    make_run(tmp_path, "hydra", 7, {0.1: 88})  # of an older version
    (table,) = report_of(tmp_path).split("### Size")[1:]
    rows = [line for line in table.splitlines() if line.startswith("| vpns")]
    assert rows[0] == "| vpns | 90 % | 26,834 | 2,000 | 2.0 |"
    assert "hydra" not in table.partition("###")[0]

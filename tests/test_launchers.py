"""The shell side: what the launchers and the two set-up commands do, with a stand-in for Python."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from utils.python_env import unmet

ROOT = Path(__file__).parent.parent
AUTHORS = (
    "--epochs 30 --weight_optimizer sgd --weight_lr {lr} --weight_vp_optimizer sgd"
    " --weight_vp_lr {lr} --score_optimizer adam --score_lr 0.0001"
    " --score_vp_optimizer adam --score_vp_lr 0.0001"
)

ROOMS = ("utils", "runfolder", "data", "models", "prompts", "pruning", "program", "report")


class Project:
    """A copy of the project's shell side in a folder with spaces, and a stand-in for Python."""

    def __init__(self, folder: Path) -> None:
        self.root, self.notes = folder / "a copy of vpns", folder / "what happened"
        self.notes.mkdir()
        unused = shutil.ignore_patterns("__pycache__")
        for room in ROOMS:
            shutil.copytree(ROOT / room, self.root / room, ignore=unused)
        for pattern in ("*.sh", "requirements*.txt"):
            for file in ROOT.glob(pattern):
                shutil.copy(file, self.root)
        self.python = self.notes / "python"
        shutil.copy(ROOT / "tests/fake_python.sh", self.python)
        self.has_gpu(False)

    def has_gpu(self, there: bool) -> None:
        self.tool("nvidia-smi", f"exit {0 if there else 1}")

    def tool(self, name: str, body: str) -> None:
        """Put a command in front of the system's."""
        (self.notes / name).write_text(f"#!/bin/sh\n{body}\n")
        (self.notes / name).chmod(0o755)

    def stand_in(self, body: str) -> None:
        """Let main_vpns.py be a shell script."""
        text = self.python.read_text()
        start = '[ "$1" = main_vpns.py ] || exec "$FAKE_REAL" "$@"\n'
        assert text.count(start) == 1
        self.python.write_text(text.replace(start, f"{start}{body}\nexit\n"))

    def environment(self, variables: dict[str, str]) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
        fake = {"FAKE": str(self.notes), "FAKE_REAL": sys.executable, "PYTHON": str(self.python)}
        return kept | fake | {"PATH": f"{self.notes}:{os.environ['PATH']}"} | variables

    def start(self, *command: str, **variables: str) -> subprocess.Popen:
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        environment = self.environment(variables)
        return subprocess.Popen(command, cwd=self.root, env=environment, **options)

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess:
        process = self.start(*command, **variables)
        out, err = process.communicate(timeout=30)
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def dry(self, script: str, *arguments: str, **variables: str) -> list[list[str]]:
        """The commands of a dry run, as words without the Python in front."""
        done = self.run("bash", script, *arguments, DRY_RUN="1", **variables)
        assert done.returncode == 0, done.stderr
        return [shlex.split(line)[1:] for line in done.stdout.splitlines()]

    def noted(self, name: str) -> list[str]:
        file = self.notes / name
        return file.read_text().splitlines() if file.exists() else []

    def wait_for(self, name: str) -> None:
        deadline = time.monotonic() + 20
        while not (self.notes / name).exists():
            assert time.monotonic() < deadline, f"{name} did not appear"
            time.sleep(0.02)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def value(words: list[str], name: str) -> str:
    """The value that wins: the last one."""
    return [after for word, after in zip(words, words[1:], strict=False) if word == name][-1]


def command(network: str, dataset: str, seed: int, lr: str = "0.01") -> list[str]:
    return (
        f"main_vpns.py --experiment_name vpns --dataset {dataset} --network {network}"
        f" --prune_method vpns --density_list 1,0.6,0.5,0.4,0.3,0.2,0.1 {AUTHORS.format(lr=lr)}"
        f" --seed {seed} --save_dir result --device cpu"
    ).split()


# The commands


def test_vpns_runs_the_authors_command_line_for_each_seed(project):
    assert project.dry("vpns.sh") == [command("resnet18", "cifar100", s) for s in (7, 9, 17)]


@pytest.mark.parametrize(
    ("script", "network", "dataset", "lr"),
    [
        ("vpns_resnet18_cifar100.sh", "resnet18", "cifar100", "0.01"),
        ("vpns_resnet50_tiny_imagenet.sh", "resnet50", "tiny_imagenet", "0.0001"),
    ],
)
def test_named_launcher_runs_the_experiment_in_its_name(project, script, network, dataset, lr):
    paper = ["--score_vp_scheduler", "multistep"]
    expected = [command(network, dataset, seed, lr) + paper for seed in (7, 9, 17)]
    assert project.dry(script) == expected


def test_named_launcher_keeps_its_dataset_whatever_the_environment_says(project):
    (words,) = project.dry("vpns_resnet18_cifar100.sh", SEEDS="7", DATASET="cifar10")
    assert value(words, "--dataset") == "cifar100"


@pytest.mark.parametrize(
    ("variable", "text", "flag", "expected"),
    [
        ("NETWORK", "vgg16", "--network", "vgg16"),
        ("DATASET", "dtd", "--dataset", "dtd"),
        ("METHOD", "hydra", "--prune_method", "hydra"),
        ("DENSITIES", "1 0.5 0.1", "--density_list", "1,0.5,0.1"),
        ("EPOCHS", "2", "--epochs", "2"),
        ("WEIGHT_LR", "0.1", "--weight_lr", "0.1"),
        ("SCORE_OPTIMIZER", "sgd", "--score_optimizer", "sgd"),
        ("SAVE_DIR", "/tmp/my results", "--save_dir", "/tmp/my results"),
        ("EXPERIMENT", "mine", "--experiment_name", "mine"),
        ("DATA", "my data", "--data", "my data"),
        ("GPUS", "3", "--gpu", "3"),
    ],
)
def test_environment_sets(project, variable, text, flag, expected):
    (words,) = project.dry("vpns.sh", SEEDS="7", **{variable: text})
    assert value(words, flag) == expected


def test_methods_and_seeds_make_a_grid(project):
    commands = project.dry("vpns.sh", METHODS="dense vpns", SEEDS="1,2")
    cells = [(value(c, "--prune_method"), value(c, "--seed")) for c in commands]
    assert cells == [("dense", "1"), ("dense", "2"), ("vpns", "1"), ("vpns", "2")]


def test_arguments_come_last_and_keep_their_spaces(project):
    (words,) = project.dry("vpns.sh", "--epochs", "1", "--data", "my  data", SEEDS="7")
    assert words[-4:] == ["--epochs", "1", "--data", "my  data"]


def edit_top(project: Project) -> None:
    script = project.root / "vpns.sh"
    text = script.read_text().replace("network=resnet18 ", "network=vgg ", 1)
    script.write_text(text.replace("dataset=cifar100 ", "dataset=food101 ", 1))


def test_editing_the_top_of_vpns_changes_network_and_dataset(project):
    edit_top(project)
    (words,) = project.dry("vpns.sh", SEEDS="7")
    assert (value(words, "--network"), value(words, "--dataset")) == ("vgg", "food101")


def test_environment_wins_over_the_edited_top(project):
    edit_top(project)
    (words,) = project.dry("vpns.sh", SEEDS="7", NETWORK="resnet50")
    assert value(words, "--network") == "resnet50"


def test_gpu_0_is_the_default_where_there_is_one(project):
    project.has_gpu(True)
    assert all(value(words, "--gpu") == "0" for words in project.dry("vpns.sh"))


def test_empty_gpus_means_the_cpu_where_there_is_a_gpu(project):
    project.has_gpu(True)
    assert all(value(words, "--device") == "cpu" for words in project.dry("vpns.sh", GPUS=""))


@pytest.mark.parametrize("script", ["vpns.sh", "vpns_resnet18_cifar100.sh"])
def test_launcher_works_with_sh_from_another_folder(project, script, tmp_path):
    environment = project.environment({"DRY_RUN": "1"})
    words = ["sh", str(project.root / script)]
    out = subprocess.check_output(words, cwd=tmp_path, env=environment, text=True)
    assert len(out.splitlines()) == 3


def test_dry_run_writes_nothing(project):
    project.dry("vpns.sh")
    assert not (project.root / "result").exists()


# Running the cells


def test_all_seeds_run_one_after_another_on_the_cpu(project):
    done = project.run("bash", "vpns.sh", FAKE_SECONDS="0.1")
    seeds = [line.split()[1] for line in project.noted("slots")]
    assert (done.returncode, seeds, project.noted("overlaps")) == (0, ["7", "9", "17"], [])


def test_runs_share_the_gpus_but_never_one_gpu(project):
    seeds = [str(seed) for seed in range(5)]
    project.run("bash", "vpns.sh", GPUS="0 1", SEEDS=" ".join(seeds), FAKE_SECONDS="0.3")
    used = [line.split() for line in project.noted("slots")]
    assert sorted(seed for _, seed, _ in used) == seeds
    assert {slot for slot, _, _ in used} == {"gpu0", "gpu1"}
    assert project.noted("overlaps") == []


def test_runs_share_the_cores(project):
    project.tool("nproc", "echo 8")
    project.run("bash", "vpns.sh", SEEDS="7 9", GPUS="0 1")
    assert {line.split()[2] for line in project.noted("slots")} == {"4"}


def test_threads_that_the_user_set_are_kept(project):
    project.run("bash", "vpns.sh", SEEDS="7 9", GPUS="0 1", OMP_NUM_THREADS="6")
    assert {line.split()[2] for line in project.noted("slots")} == {"6"}


def test_launcher_ends_with_mean_and_standard_deviation(project):
    done = project.run("bash", "vpns.sh", SEEDS="1 2 3", FAKE_REPORT="1")
    summary = "resnet20-digits-vpns        90  92.50 +- 1.00  97.25 +- 0.00      3"
    *_, last, empty, path = done.stdout.splitlines()
    assert (last, empty, path) == (summary, "", "report: result/vpns/report/report.md")


def test_output_of_a_run_goes_to_its_log(project):
    project.run("bash", "vpns.sh", SEEDS="7", EXPERIMENT="my runs")
    log = project.root / "result/my runs/logs/resnet18-cifar100-vpns-seed7.log"
    assert log.read_text().startswith("RESULT {")


def test_failing_cell_stops_neither_the_others_nor_the_summary(project):
    done = project.run("bash", "vpns.sh", FAKE_FAILS="9", FAKE_REPORT="1")
    assert (done.returncode, len(project.noted("slots"))) == (3, 3)
    assert done.stdout.splitlines()[-3].endswith("2")


def test_failing_cell_gives_its_exit_code_reason_and_log(project):
    done = project.run("bash", "vpns.sh", FAKE_FAILS="9", FAKE_CODE="4")
    log = "result/vpns/logs/resnet18-cifar100-vpns-seed9.log"
    assert done.returncode == 4
    assert "error: seed 9 is broken" in done.stderr
    assert done.stderr.splitlines()[-1].endswith(f"exit code 4: {log}")


@pytest.mark.parametrize(
    ("lines", "shown"),
    [
        ("error: in use by process 7\nUserWarning: leaked", "error: in use by process 7"),
        ("error: the first\nerror: the last\n", "error: the last"),
        ("step 1\nKilled", "Killed"),
        ("", ""),
    ],
)
def test_failed_line_shows_the_last_error_else_the_last_line(project, lines, shown):
    project.stand_in(f"printf %s {shlex.quote(lines)}; exit 1")
    done = project.run("bash", "vpns.sh", SEEDS="7")
    name = "resnet18-cifar100-vpns-seed7"
    assert done.stderr.splitlines()[0] == f"FAILED   {name}, exit code 1: {shown}"


def test_log_of_a_run_that_outlived_its_launcher_is_left_to_it(project):
    project.stand_in(
        """[ -e "$FAKE/first" ] && echo "error: in use" && exit 1
        touch "$FAKE/first"
        echo "epoch 1"
        for ((i = 0; i < 400; i++)); do [ -e "$FAKE/go" ] || sleep 0.05; done
        echo 'RESULT {"run": "x"}'
        touch "$FAKE/ended" """
    )
    launcher = project.start("bash", "vpns.sh", SEEDS="7")
    project.wait_for("first")
    launcher.kill()
    done = project.run("bash", "vpns.sh", SEEDS="7")
    (project.notes / "go").touch()
    project.wait_for("ended")
    launcher.communicate(timeout=20)
    name = "resnet18-cifar100-vpns-seed7"
    assert done.stderr.splitlines()[0] == f"FAILED   {name}, exit code 1: error: in use"
    assert done.stderr.splitlines()[-1].endswith(f"logs/{name}.2.log")
    logs = project.root / "result/vpns/logs"
    assert (logs / f"{name}.log").read_text() == 'epoch 1\nRESULT {"run": "x"}\n'
    assert (logs / f"{name}.2.log").read_text() == "error: in use\n"


def test_result_of_an_earlier_try_does_not_count_for_a_later_one(project):
    project.run("bash", "vpns.sh", SEEDS="7")
    project.stand_in("exit 0")
    done = project.run("bash", "vpns.sh", SEEDS="7", FAKE_REPORT="1")
    assert (done.returncode, (project.root / "result/vpns/report").exists()) == (0, False)


def test_log_that_cannot_be_made_fails_its_cell(project):
    done = project.run("bash", "vpns.sh", SEEDS="7", DATASET="no/such/folder")
    assert done.returncode == 1 and "No such file or directory\n" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("failed: resnet18-no/such/folder-vpns-seed7")


def test_interrupted_cell_makes_75_and_does_not_stop_the_others(project):
    done = project.run("bash", "vpns.sh", FAKE_FAILS="7", FAKE_CODE="75")
    assert (done.returncode, len(project.noted("slots"))) == (75, 3)


@pytest.mark.parametrize(
    ("sent", "received"),
    [("SIGTERM", "TERM"), ("SIGINT", "TERM"), ("SIGUSR1", "USR1"), ("SIGUSR2", "USR2")],
)
def test_signal_is_passed_on_and_waited_for(project, sent, received):
    launcher = project.start("bash", "vpns.sh", GPUS="0 1", FAKE_HOLD="1")
    project.wait_for("started-7")
    project.wait_for("started-9")
    launcher.send_signal(getattr(signal, sent))
    launcher.communicate(timeout=20)
    assert project.noted("saved") == [received, received]
    assert launcher.returncode == 75
    assert len(project.noted("slots")) == 2


def test_ctrl_c_in_a_terminal_reaches_all_and_is_waited_for(project):
    launcher = project.start("setsid", "bash", "vpns.sh", SEEDS="7", FAKE_HOLD="1")
    project.wait_for("started-7")
    os.killpg(launcher.pid, signal.SIGINT)
    out, _ = launcher.communicate(timeout=20)
    assert launcher.returncode == 75 and "the same command continues it" in out
    assert project.noted("saved") == ["TERM"]


def test_signal_before_the_first_cell_stops_the_launcher(project):
    project.tool("mkdir", 'kill -TERM $PPID\ncommand -p mkdir "$@"')
    done = project.run("bash", "vpns.sh")
    assert (done.returncode, project.noted("slots")) == (75, [])


def test_launcher_without_a_python_that_fits_says_what_to_do(project):
    done = project.run("bash", "vpns.sh", FAKE_UNMET="1")
    assert done.returncode == 1
    lacks = "found torch 2.7.0, needs >=2.8;no scipy, needs any"
    assert f"no Python with the packages of requirements.txt ({lacks})" in done.stderr


# The grid and its report


def report(project: Project, experiment: str = "vpns") -> str:
    return (project.root / "result" / experiment / "report/report.md").read_text()


def test_grid_of_methods_and_seeds_ends_with_their_report(project):
    project.run("bash", "vpns.sh", METHODS="dense vpns hydra", SEEDS="1 2", FAKE_REPORT="1")
    rows = [line.split(" |")[0] for line in report(project).splitlines() if "92.00" in line]
    assert rows[:2] == ["| vpns", "| hydra"]
    assert "| dense | 99.00 ± 0.00 |" in report(project)


@pytest.mark.slow
def test_repeated_grid_prints_and_writes_the_same(project):
    grid = {"METHODS": "vpns hydra", "SEEDS": "1", "FAKE_REPORT": "1"}
    first, text = project.run("bash", "vpns.sh", **grid), report(project)
    second = project.run("bash", "vpns.sh", **grid).stdout
    assert second.replace(".2.log", ".log") == first.stdout
    assert report(project) == text


@pytest.mark.slow
def test_report_is_on_the_earlier_methods_of_the_experiment_too(project):
    for methods in ("vpns", "hydra"):
        project.run("bash", "vpns.sh", METHODS=methods, SEEDS="1", FAKE_REPORT="1")
    assert "| vpns |" in report(project) and "| hydra |" in report(project)


@pytest.mark.slow
def test_failing_method_does_not_hide_the_report_of_the_others(project):
    grid = {"METHODS": "vpns snip hydra", "SEEDS": "1 2", "GPUS": "0 1"}
    done = project.run("bash", "vpns.sh", FAKE_FAILS="snip", FAKE_REPORT="1", **grid)
    assert done.returncode == 3
    assert "| vpns |" in report(project) and "| hydra |" in report(project)
    failed = [line for line in done.stderr.splitlines() if line.startswith("failed: ")]
    assert sorted(line.split()[1] for line in failed) == [
        "resnet18-cifar100-snip-seed1,", "resnet18-cifar100-snip-seed2,",
    ]  # fmt: skip


def test_grid_in_which_everything_fails_has_no_report(project):
    done = project.run("bash", "vpns.sh", SEEDS="9", FAKE_FAILS="9", FAKE_REPORT="1")
    assert (done.returncode, (project.root / "result/vpns/report").exists()) == (3, False)


@pytest.mark.slow
def test_report_finds_runs_that_went_to_another_folder(project, tmp_path):
    project.run("bash", "vpns.sh", "--save_dir", str(tmp_path / "x"), SEEDS="1", FAKE_REPORT="1")
    assert "| vpns |" in report(project)


@pytest.mark.slow
def test_report_that_fails_is_the_launchers_failure(project):
    blocked = project.root / "result/vpns"
    blocked.mkdir(parents=True)
    (blocked / "report").touch()
    done = project.run("bash", "vpns.sh", SEEDS="1", FAKE_REPORT="1")
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot make result/vpns/report")


def test_report_that_is_stopped_makes_the_launcher_75(project):
    stopped = "raise SystemExit(75)"
    (project.root / "utils/report.py").write_text(stopped)
    done = project.run("bash", "vpns.sh", SEEDS="1", FAKE_REPORT="1")
    assert done.returncode == 75


def test_preset_leaves_epochs_and_optimizers_to_the_program(project):
    (words,) = project.dry("vpns.sh", SEEDS="7", PRESET="paper")
    assert value(words, "--preset") == "paper"
    assert [w for w in words if "epochs" in w or "_lr" in w or "optimizer" in w] == []


def test_variables_win_over_the_preset(project):
    (words,) = project.dry("vpns.sh", SEEDS="7", PRESET="paper", EPOCHS="2", SCORE_LR="0.1")
    assert (value(words, "--epochs"), value(words, "--score_lr")) == ("2", "0.1")
    assert "--weight_lr" not in words


# The two commands


def test_quickstart_runs_dense_then_vpns_with_the_users_arguments_last(project):
    project.run("bash", "quickstart.sh", "--epochs", "1")
    first, second = [line.split() for line in project.noted("calls")]
    assert [value(words, "--prune_method") for words in (first, second)] == ["dense", "vpns"]
    assert value(second, "--density_list") == "1,0.2,0.1,0.05,0.02"
    assert first[-2:] == second[-2:] == ["--epochs", "1"]


def test_quickstart_ends_with_table_and_picture(project):
    lines = project.run("sh", "quickstart.sh").stdout.splitlines()
    start = lines.index("sparsity   real  clean  prompted")
    assert lines[start + 1].split() == ["dense", "0.00", "99.00", "-"]
    assert lines[start + 2].split() == ["90", "90.00", "97.50", "97.25"]
    assert lines[start + 4].startswith("curves: ") and lines[start + 4].endswith("/curves.png")


def test_quickstart_stops_with_the_exit_code_of_a_failed_run(project):
    done = project.run("bash", "quickstart.sh", FAKE_FAILS="7", FAKE_CODE="3")
    assert (done.returncode, len(project.noted("calls"))) == (3, 1)


def test_quickstart_makes_an_environment_when_the_active_python_lacks_packages(project):
    done = project.run("bash", "quickstart.sh", FAKE_UNMET="1")
    assert done.returncode == 0 and "does not fit: found torch 2.7.0" in done.stdout
    assert project.noted("calls")[:2] == ["venv", "pip install -r requirements.txt"]


def test_environment_that_is_there_is_used_again(project):
    for _ in range(2):
        project.run("bash", "run_tests.sh", FAKE_UNMET="1")
    installs = [line for line in project.noted("calls") if line.startswith(("venv", "pip"))]
    assert installs == ["venv", "pip install -r requirements-dev.txt"]


def test_failed_install_says_what_to_do(project):
    done = project.run("bash", "quickstart.sh", FAKE_UNMET="1", FAKE_PIP="1")
    assert done.returncode == 1
    assert done.stderr.startswith("error: pip could not install requirements.txt")


def test_a_folder_that_cannot_be_written_is_told_as_such(lockable, tmp_path):
    folder, lock = lockable
    project = Project(folder)
    lock()
    done = project.run("bash", "quickstart.sh", FAKE_UNMET="1", FAKE=str(tmp_path))
    assert done.returncode == 1 and f"{project.root} cannot be written" in done.stderr


def test_old_python_is_refused_with_its_version(project):
    done = project.run("bash", "run_tests.sh", FAKE_OLD="1")
    assert (done.returncode, (project.root / ".venv").exists()) == (1, False)
    assert "Python 3.10 or newer is needed" in done.stderr
    assert "is 3.8.10" in done.stderr


def test_missing_python_is_named(project):
    done = project.run("bash", "run_tests.sh", PYTHON="/no/such/python")
    assert (done.returncode, done.stderr.partition(":")[0]) == (1, "error")
    assert "/no/such/python not found" in done.stderr


def test_relative_python_is_meant_from_the_callers_folder(project):
    words = ["bash", f"{project.root}/run_tests.sh", "-k", "name"]
    environment = project.environment({"PYTHON": "./python"})
    subprocess.run(words, cwd=project.notes, env=environment, check=True, capture_output=True)
    assert project.noted("calls") == ["pytest -k name"]


# The check of the requirements


def requirements(folder: Path, text: str) -> Path:
    file = folder / "wanted.txt"
    file.write_text(text)
    return file


def test_requirements_that_are_met_leave_nothing_to_say(tmp_path):
    text = f"# comment\n\npytest>=2,<100  # bounds\npytest=={pytest.__version__}\n"
    assert unmet(requirements(tmp_path, text)) == []


@pytest.mark.parametrize("line", ["pytest<2", "pytest>=99", "pytest>=2,<2.1"])
def test_version_out_of_range_is_named_with_what_was_found(tmp_path, line):
    expected = [f"found pytest {pytest.__version__}, needs {line.removeprefix('pytest')}"]
    assert unmet(requirements(tmp_path, line)) == expected


def test_missing_package_is_named(tmp_path):
    assert unmet(requirements(tmp_path, "no-such-pkg>=1")) == ["no no-such-pkg, needs >=1"]


def test_included_requirements_count(tmp_path):
    (tmp_path / "more.txt").write_text("no-such-pkg\n")
    assert unmet(requirements(tmp_path, "-r more.txt")) == ["no no-such-pkg, needs any"]


def begun(before="", after="", **options):
    """The start of the program in a Python of its own, without what is heavy."""
    code = "\n".join(["import utils.start as s", before, "s.begin_process()", after])
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True,
                          text=True, check=False, **options)  # fmt: skip


def test_the_program_itself_says_what_does_not_fit():
    done = begun("s.unmet = lambda path: ['found torch 2.7.0, needs >=2.8']")
    line = "error: found torch 2.7.0, needs >=2.8: pip install -r requirements.txt\n"
    assert (done.returncode, done.stderr) == (1, line)


def test_a_working_folder_that_is_gone_is_told_as_such(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    before = f"import os; os.chdir({str(gone)!r}); os.rmdir({str(gone)!r})"
    done = begun(before)
    line = "error: the working folder is gone: change to another one\n"
    assert (done.returncode, done.stderr) == (1, line)


@pytest.mark.parametrize("error", ["MemoryError()", "ImportError('failed to map segment')"])
def test_an_import_that_fails_is_one_line(error):
    done = begun(after=f"raise {error}")
    assert done.returncode == 1 and done.stderr.startswith("error: it could not begin (")
    assert len(done.stderr.splitlines()) == 1


def test_local_and_trailing_parts_of_a_version_do_not_matter(tmp_path, monkeypatch):
    monkeypatch.setattr("utils.python_env.metadata.version", lambda name: "2.14.0+cpu")
    assert unmet(requirements(tmp_path, "torch>=2.14,<=2.14.0,<2.15")) == []


# A sweep as jobs of Slurm


SLURM = {"LAUNCHER": "slurm", "METHODS": "vpns omp", "SEEDS": "7 9", "EXPERIMENT": "a b"}


def test_a_sweep_becomes_an_array_of_jobs_and_a_report_that_waits_for_it(project: Project) -> None:
    project.tool("sbatch", 'echo "$*" >>"$FAKE/queued"; echo "17;cluster"')
    done = project.run("bash", "vpns.sh", "--batch_size", "64", JOBS="3", **SLURM)
    cells, report = project.noted("queued")
    assert done.returncode == 0 and done.stdout.count("queued ") == 5
    assert "--array=1-4%3" in cells and cells.endswith("bash vpns.sh --batch_size 64")
    assert "LAUNCHER=cell" in cells and "METHODS=vpns omp" in cells and "SEEDS=7 9" in cells
    assert "--dependency=afterany:17 " in report and report.endswith("bash vpns.sh")


@pytest.mark.parametrize("number", [1, 4])
def test_a_job_of_an_array_runs_its_cell(project: Project, number: int) -> None:
    variables = SLURM | {"LAUNCHER": "cell", "SLURM_ARRAY_TASK_ID": str(number)}
    done = project.run("bash", "vpns.sh", **variables)
    (call,) = project.noted("calls")
    method, seed = {1: ("vpns", "7"), 4: ("omp", "9")}[number]
    assert done.returncode == 0 and "--gpu" not in call
    assert f"--prune_method {method} " in call and f"--seed {seed} " in call


def test_a_launcher_that_is_not_there_is_named(project: Project) -> None:
    done = project.run("bash", "vpns.sh", LAUNCHER="pbs")
    assert done.returncode == 1 and "LAUNCHER is local or slurm, not pbs" in done.stderr


def test_cells_that_are_queued_without_their_report_are_named(project: Project) -> None:
    project.tool("sbatch", 'case "$*" in *dependency*) exit 1 ;; esac; echo 17')
    done = project.run("bash", "vpns.sh", **SLURM)
    assert done.returncode == 1 and "the cells are, as job 17" in done.stderr

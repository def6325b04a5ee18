"""How the runs of a report were made: their commands, versions and hardware."""

import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from program.settings import NOT_IDENTITY
from report.runs import NAMES, Run, as_text
from report.tables import plain


def commands_and_machines(runs: Sequence[Run]) -> list[str]:
    """The commands of all runs, with what they share written once, and where they ran."""
    flags = [(run, items) for run in runs if (items := _flags(run))]
    if not flags:
        return []
    common = set(flags[0][1]).intersection(*(items for _, items in flags))
    commands: defaultdict[str, set[int]] = defaultdict(set)
    for run, items in flags:
        commands[_words(item for item in items if item not in common)].add(run.seed)
    lines = [f"shared=({_words(item for item in flags[0][1] if item in common)})"]
    for words, seeds in commands.items():
        command = f'    python main_vpns.py --seed "$seed" "${{shared[@]}}" {words}'
        lines += [f"for seed in {' '.join(map(str, sorted(seeds)))}; do", command.rstrip(), "done"]
    parts = ["## How it was made",
             "All hyper-parameters; flags that change no result are left out.",
             "\n".join(["```bash", *lines, "```"])]  # fmt: skip
    envs = [sorted(run.env.items()) for run, _ in flags if run.env]
    counts = Counter(", ".join(f"{n} {'none' if v is None else v}" for n, v in e) for e in envs)
    lines = [f"- {count} run{'s' * (count > 1)}: {plain(text)}"
             for text, count in sorted(counts.items())]  # fmt: skip
    return [*parts, "Versions and hardware:", "\n".join(lines)] if lines else parts


def _flags(run: Run) -> list[tuple[str, str]]:
    """The flags that change results as text, by name; none without a config.json."""
    if run.config.keys() == set(NAMES):
        return []
    flags = {n: v for n, v in run.config.items() if n == "density_list" or n not in NOT_IDENTITY}
    if "density_list" in flags:
        # config.json has the first list; a run may have been extended since.
        densities = {row["density"] for row in run.rows.values()}
        flags["density_list"] = sorted({*flags["density_list"], *densities}, reverse=True)
    return [(name, as_text(value)) for name, value in sorted(flags.items()) if value is not None]


def _words(flags: Iterable[tuple[str, str]]) -> str:
    """Flags as words of a command; a switch has no value."""
    switches = {"True": "--{}", "False": "--no_{}"}
    words = []
    for name, value in flags:
        words += [switches[value].format(name)] if value in switches else [f"--{name}", value]
    return shlex.join(words)

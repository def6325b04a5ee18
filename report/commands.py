"""How the runs of a report were made: their commands, versions and hardware."""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from report.labels import PLACE
from report.panel import Panel
from report.records import Record


def commands_and_machines(shown: Sequence[Panel]) -> list[str]:
    """The commands of all runs, with what they share written once, and where they ran."""
    records = [record for panel in shown for record in panel.records if _flags(record)]
    if not records:
        return []
    common = set(_flags(records[0]).items()).intersection(*(_flags(r).items() for r in records))
    order = [item for item in _flags(records[0]).items() if item in common]
    commands: dict[str, list[int]] = {}
    for record in records:
        own = [item for item in _flags(record).items() if item not in common]
        commands.setdefault(shlex.join(_words(own)), []).append(record.seed)
    lines = [f"shared=({shlex.join(_words(order))})"]
    for text, seeds in commands.items():
        lines += [
            f"for seed in {' '.join(map(str, sorted(set(seeds))))}; do",
            f'    python main_vpns.py --seed "$seed" "${{shared[@]}}" {text}'.rstrip(),
            "done",
        ]
    return [
        "## How it was made",
        "All hyper-parameters; flags that change no result are left out.",
        "```bash\n" + "\n".join(lines) + "\n```",
        *_machines(records),
    ]


def _flags(record: Record) -> dict[str, str]:
    """The flags that change results as text; {} without a config.json."""
    hidden = PLACE | {"seed"}
    known = {name: value for name, value in record.config.items() if name not in hidden}
    if len(known) <= len(("network", "dataset", "prune_method")):
        return {}
    if "density_list" in known:
        # config.json has the first list; a run may have been extended since.
        made = {row["density"] for row in record.rows.values()}
        known["density_list"] = sorted({*known["density_list"], *made}, reverse=True)
    return {name: _typed(value) for name, value in sorted(known.items()) if value is not None}


def _typed(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_typed, value))
    return str(value)


def _words(flags: Sequence[tuple[str, str]]) -> list[str]:
    """Flags as words of a command; a switch has no value."""
    words: list[str] = []
    for name, value in flags:
        if value in ("True", "False"):
            words.append(f"--{name}" if value == "True" else f"--no_{name}")
        else:
            words += [f"--{name}", value]
    return words


def _machines(records: Sequence[Record]) -> list[str]:
    """Versions and hardware, with the number of runs where they differ."""
    counts = Counter(_machine(record.env) for record in records if record.env)
    lines = [f"- {count} run{'s' * (count > 1)}: {text}" for text, count in sorted(counts.items())]
    return ["Versions and hardware:", "\n".join(lines)] if lines else []


def _machine(env: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {'none' if env[name] is None else env[name]}" for name in sorted(env))

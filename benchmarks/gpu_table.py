"""The table of what gpu.sh has measured: `python benchmarks/gpu_table.py FOLDER` writes report.md.

FOLDER holds the output of each part, `<part>.log`, with a RESULT line at its end unless it failed.
"""

import json
import platform
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

COLUMNS = ("search", "finetune", "eval", "reference_search", "reference_finetune", "dense_fused",
           "dense_graph")  # fmt: skip


def step_row(name: str, result: Mapping[str, Any]) -> str:
    """Ratios over two dense steps, median (range), and the most memory in MiB."""
    spreads = (result.get(column) for column in COLUMNS)
    cells = ["{median:.2f} ({min:.2f}-{max:.2f})".format(**s) if s else "-" for s in spreads]
    peaks = result["peak_mib"]
    cells += [f"{peaks[n]:.0f}" if n in peaks else "-" for n in ("dense", "search", "finetune")]
    case = "{network}, {size} px, batch {batch}".format(**result)
    return f"| {' | '.join([name, case, *cells])} |"


def report(folder: Path) -> str:
    """The whole of report.md: the machine, the steps, and the last lines of the other parts."""
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    head = [f"On {card}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}. A step: the unit "
            "is two plain dense SGD steps by torch's defaults; median and range. Memory in MiB.",
            "",
            f"| part | case | {' | '.join(COLUMNS)} | memory dense | search | finetune |",
            "|---" * (len(COLUMNS) + 5) + "|"]  # fmt: skip
    steps, rest = [], []
    for log in sorted(folder.glob("*.log")):
        text = log.read_text(errors="replace")
        results = re.findall(r"^RESULT (.*)", text, re.MULTILINE)
        if log.stem.startswith("step-") and results:
            steps.append(step_row(log.stem, json.loads(results[-1])))
        else:
            rest += ["", f"{log.stem}:", "", "```", *text.splitlines()[-8:], "```"]
    return "\n".join([*head, *steps, *rest]) + "\n"


if __name__ == "__main__":
    text = report(Path(sys.argv[1]))
    (Path(sys.argv[1]) / "report.md").write_text(text)
    print(text)

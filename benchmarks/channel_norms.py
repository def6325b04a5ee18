"""The baselines of torch-pruning: channels removed by their norms, as weights for a run.

    python benchmarks/channel_norms.py --network resnet20 --size 16 --macs 4000000 --to FILE
    python main_vpns.py --network resnet20 --weights FILE --prune_method dense ...

`--importance magnitude` ranks a channel by the norm of the filter that writes it, `group` by the
norm of all that goes with it (DepGraph, Fang et al. 2023).
"""

import argparse
import copy
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models.arithmetic import multiply_adds
from models.backbones import backbone, build_network
from models.classifier import PromptedClassifier
from models.resnet_cifar import ResNetCifar
from models.widths import widths_of
from utils.checkpoint import save_model

STEPS = 200  # of one more percent of the channels at most, until few enough multiply-adds are left


def main() -> None:
    """Prune, until the multiply-adds are as few as wished, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--weights", help="the network's own weights by default")
    parser.add_argument("--size", type=int, default=16, help="pixels")
    parser.add_argument("--macs", type=int, required=True, help="multiply-adds for one image")
    parser.add_argument("--importance", choices=("magnitude", "group"), default="group")
    parser.add_argument("--to", type=Path, required=True)
    args = parser.parse_args()
    network = build_network(args.network, args.weights).eval()
    pruned = pruned_to(network, args.size, args.macs, args.importance)
    state = dict(pruned.state_dict())
    row = backbone(args.network)
    expected = row.skeleton(row.outputs_of(state)).state_dict()
    meta = {"network": args.network, "widths": widths_of(expected, state)}
    save_model(args.to, state, meta)
    print(f"{args.to}: {macs_of(pruned, args.size):,} multiply-adds of "
          f"{macs_of(network, args.size):,}")


def macs_of(network: torch.nn.Module, size: int) -> int:
    """Multiply-adds for one image."""
    model = PromptedClassifier(network)
    with torch.no_grad():
        return multiply_adds(lambda: model(torch.zeros(1, 3, size, size)))[""]


def is_layer(module: torch.nn.Module) -> bool:
    """Whether a module has filters."""
    return isinstance(module, torch.nn.Conv2d | torch.nn.Linear)


def pruned_to(
    network: torch.nn.Module, size: int, macs: int, importance: str
) -> torch.nn.Module:
    """A copy without the channels of least importance over all layers."""
    import torch_pruning as tp

    network = copy.deepcopy(network)
    held = [network.fc]
    if isinstance(network, ResNetCifar):  # torch-pruning misreads shortcuts that pad channels
        inner = {f"{block}.conv1" for block, m in network.named_modules() if hasattr(m, "conv2")}
        held = [m for name, m in network.named_modules() if name not in inner and is_layer(m)]
    first = importance == "magnitude"
    pruner = tp.pruner.BasePruner(
        network, torch.zeros(1, 3, size, size),
        importance=tp.importance.GroupMagnitudeImportance(
            p=2, group_reduction="first" if first else "mean"),
        global_pruning=True, pruning_ratio=0.99, iterative_steps=STEPS, ignored_layers=held,
        max_pruning_ratio=0.95,
    )  # fmt: skip
    for _ in range(STEPS):
        if macs_of(network, size) <= macs:
            break
        pruner.step()
    return network


if __name__ == "__main__":
    main()

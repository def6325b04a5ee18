"""`--export`: a finished network as a folder that needs nothing of this project."""

import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from data import load_data
from models import PromptedClassifier
from models.backbones import backbone
from models.deployed import Deployed, deployed
from models.hub import push
from program.checkpoints import completed, read_checkpoint
from program.flags import RunConfig
from program.settings import Config, Typed, chosen_flags, named
from utils.checkpoint import load_model
from utils.errors import DataError, UsageError, VPNsError, note, printable
from utils.files import atomic_write, sha256_file

CHECKED = 512  # test images at most
CLOSE = 1e-4
BATCH = 16
NETWORKS_OF_TIMM = {"resnet18": "resnet18", "resnet50": "resnet50",
                    "efficientnet_lite0": "tf_efficientnet_lite0"}  # fmt: skip
Run = Callable[[Tensor], Tensor]


def export(config: Config, typed: Typed) -> dict[str, Any]:
    """Write `.pt2`, ONNX, weights with their config, labels and a card into `--to`; RESULT values.

    Raises UsageError without a folder, VPNsError when outputs differ.
    """
    run = config.run
    source, folder = Path(run.export), target_folder(run, run.export)
    tensors, meta = load_model(source)
    with made_aside(folder) as aside:
        found = written(source, tensors, meta, aside, config, typed)
        _write_weights(aside, *own_outputs(tensors, meta))
    pushed = push(folder, run.push_to) if run.push_to else None
    return {"exported": str(folder), "bytes": told(folder), **found, "pushed": pushed}


def target_folder(run: RunConfig, source: str) -> Path:
    """The folder `--to`. Raises UsageError without one, and where it would overwrite `source`."""
    if run.to is None:
        raise UsageError("what is written needs a folder: give it with --to")
    folder = Path(run.to)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--to {folder} is a file: name a folder")
    if folder.resolve() == Path(source).resolve().parent:
        raise UsageError(f"--to {folder} is the folder of {source} itself: name another one")
    return folder


@contextmanager
def made_aside(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder`, whose files move into it at the end: all of them, or none."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as aside:
        yield Path(aside)
        folder.mkdir(exist_ok=True)
        for path in sorted(Path(aside).iterdir()):
            os.replace(path, folder / path.name)


def told(folder: Path) -> dict[str, int]:
    """The bytes of the files in a folder, by name, which are printed too."""
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    print("\n".join(f"{folder / name}: {size:,} bytes" for name, size in sizes.items()))
    return sizes


def written(
    source: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], folder: Path,
    config: Config, typed: Typed,
) -> dict[str, Any]:  # fmt: skip
    """Write `.pt2`, ONNX, labels and a card of a model file, whose content is given, into a folder.

    All are compared with our own outputs on test images, or on random ones where there are none.
    Returns the differences, and accuracy and number of the images. Raises VPNsError when they
    differ.
    """
    run = config.run
    model, names = deployed(source, tensors, meta, run.clean, named(config, typed))
    programs = {"model.pt2": _as_program(model, folder / "model.pt2")}
    if has_onnx():
        programs["model.onnx"] = as_onnx(model, names, folder / "model.onnx")
    else:
        note("no model.onnx: it needs pip install onnx onnxscript onnxruntime")
    chosen = chosen_flags(config, typed)
    ours = read_checkpoint(source, chosen)
    images, labels, where = test_images({**ours.flags, **chosen}, model.size)
    shown = not run.clean
    expected = logits_of(ours.model, images.float() / 255, shown).softmax(1)
    found = {}
    for name, program in programs.items():
        outputs = torch.cat([program(batch) for batch in images.split(BATCH)])
        found[name] = float((outputs - expected).abs().max())
        if found[name] > CLOSE and found[name] > 10 * rounding(ours.model, images, expected, shown):
            raise VPNsError(f"{name} differs by {found[name]:.2g} from {source}: a bug")
    accuracy = 100 * (expected.argmax(1) == labels).float().mean().item() if where else None
    atomic_write(folder / "labels.txt", "".join(f"{printable(name)}\n" for name in names))
    atomic_write(folder / "README.md", _card(source, meta, names, accuracy, where, model))
    return {"differences": found, "images": len(images) if where else 0, "accuracy": accuracy}


def _as_program(model: Deployed, path: Path) -> Run:
    """Write a torch.export program; what runs the file."""
    batch = torch.export.Dim("batch", min=1, max=4096)
    high, wide = (torch.export.Dim(name, min=1, max=8192) for name in ("height", "width"))
    example = torch.zeros(2, 3, model.size + 1, model.size + 3, dtype=torch.uint8)
    sizes = ({0: batch, 2: high, 3: wide},)
    with torch.no_grad():
        program, file = torch.export.export(model, (example,), dynamic_shapes=sizes), io.BytesIO()
    torch.export.save(program, file)  # to a disk that is full it would end the process
    atomic_write(path, file.getvalue())
    program = torch.export.load(path).module()
    return torch.no_grad()(lambda images: program(images))


def has_onnx() -> bool:
    """Whether ONNX files can be written and run here."""
    return all(map(find_spec, ("onnx", "onnxscript", "onnxruntime")))


def as_onnx(model: Deployed, names: tuple[str, ...], path: Path) -> Run:
    """Write an ONNX file with the names of the classes in its metadata; what runs the file."""
    import onnxruntime

    example = torch.zeros(2, 3, model.size + 1, model.size + 3, dtype=torch.uint8)
    exported = torch.onnx.export(
        model, (example,), dynamo=True, verbose=False, input_names=["images"],
        output_names=["probabilities"],
        dynamic_shapes=({0: "batch", 2: "height", 3: "width"},),
    )  # fmt: skip
    exported.model.metadata_props["classes"] = json.dumps(list(names))
    exported.save(path)
    options = onnxruntime.SessionOptions()  # its threads would go on, in the way of what comes next
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def test_images(flags: Mapping[str, Any], size: int) -> tuple[Tensor, Tensor, str | None]:
    """uint8 test images (N, 3, size, size), their labels, and where they come from."""
    data = completed({**flags, "download": False}).data
    with suppress(DataError):
        views = load_data(data, size, BATCH, torch.device("cpu"))
        batches = list(islice(views.test.batches(), CHECKED // BATCH))
        images = torch.cat([x for x, _ in batches]).mul(255).round().to(torch.uint8)
        return images, torch.cat([y for _, y in batches]), data.dataset
    note(f"{data.dataset} is not here: compared on random images")
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2 * BATCH, 3, size, size), generator=draw, dtype=torch.uint8)
    return images, torch.zeros(len(images)), None


@torch.no_grad()
def logits_of(model: PromptedClassifier, images: Tensor, prompted: bool) -> Tensor:
    """What the program itself gives for images in [0, 1], (N, C)."""
    return torch.cat([model.eval()(x, prompted=prompted) for x in images.split(BATCH)])


def rounding(model: PromptedClassifier, images: Tensor, outputs: Tensor, prompted: bool) -> float:
    """How far the probabilities for uint8 images are from exact ones, those of float64 arithmetic.

    Another order of sums differs by as much. Changes the model: its weights become float64.
    """
    exact = logits_of(model.double(), images.double() / 255, prompted).softmax(1)
    return float((exact - outputs).abs().max())


def own_outputs(
    tensors: Mapping[str, Tensor], meta: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A network with an output for each class in the place of its label map."""
    row, label_map, tensors = backbone(meta["network"]), meta["label_map"], dict(tensors)
    for name in tensors.keys() & row.head_tensors if label_map is not None else ():
        tensors[name] = tensors[name][label_map]
    config = meta["config"] | {"label_mapping_mode": "none"}
    return tensors, {**meta, "label_map": None, "config": config}


def _write_weights(folder: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """The weights and their config as timm and transformers read it."""
    row = backbone(meta["network"])
    names = tuple(map(str, meta.get("classes") or range(row.outputs_of(tensors))))
    data = save({n: t.contiguous() for n, t in tensors.items()}, metadata={"format": "pt"})
    atomic_write(folder / "model.safetensors", data)
    own = meta["network"]
    name = own.removeprefix("timm:") if own.startswith("timm:") else NETWORKS_OF_TIMM.get(own)
    if name is None:
        return  # a network that no library has under this name
    size, colours = meta["sizes"]["input"], meta["normalisation"]
    shown = {"input_size": [3, size, size], "interpolation": "bilinear", "crop_pct": 1.0,
             "crop_mode": "squash", "classifier": row.head, "num_classes": len(names),
             "label_names": list(names), **colours}  # fmt: skip
    config = {"architecture": name, "num_classes": len(names), "label_names": list(names),
              "pretrained_cfg": shown}  # fmt: skip
    atomic_write(folder / "config.json", json.dumps(config, indent=2) + "\n")


def _card(
    source: Path, meta: dict[str, Any], names: tuple[str, ...], accuracy: float | None,
    where: str | None, model: Deployed,
) -> str:  # fmt: skip
    """The model card, with a program that runs the files."""
    config, result = meta["config"], meta.get("result", {})
    seen = f"{accuracy:.2f} % of the test images of {where} looked at here" if where else "not here"
    lines = {
        "network": meta["network"], "data": f"{meta['dataset']}, {len(names)} classes",
        "method": f"{config['prune_method']}, seed {config['seed']}",
        "sparsity": f"{100 * (1 - meta['density']):.4g} %", "prompt": meta["prompt"],
        "input": f"uint8 images of any size, resized to {model.size} x {model.size}",
        "accuracy": f"clean {result.get('clean')} %, prompted {result.get('prompted')} % when it "
                    f"was made; {seen}",
        "SHA-256 of the source": sha256_file(source), "licence": "that of its weights and images",
    }  # fmt: skip
    facts = "\n".join(f"- **{name}**: {printable(value)}" for name, value in lines.items())
    return f"""# {printable(meta["network"])}, pruned

{facts}

`model.pt2` needs torch alone, `model.onnx` onnxruntime alone; both contain resizing, prompt,
normalisation and label mapping. `model.safetensors` are the weights alone, with an output a class.

```python
import numpy, torch
from PIL import Image
names = open("labels.txt").read().splitlines()
pixels = numpy.array(Image.open("picture.jpg").convert("RGB"))
image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
chances = torch.export.load("model.pt2").module()(image)[0]
print(names[int(chances.argmax())], float(chances.max()))

import onnxruntime
session = onnxruntime.InferenceSession("model.onnx")
print(session.run(None, {{"images": image.numpy()}})[0])
```
"""

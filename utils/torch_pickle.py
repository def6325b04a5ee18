"""The pickle in a file of torch.save, read so that nothing in it means anything but data.

Of its names those of `NAMES` alone are known, and what they mean is inert: a tensor is a
description of where its values lie in the file. utils/torch_look.py is the process that reads.
"""

import math
from pickle import Unpickler
from typing import Any, BinaryIO, NamedTuple

ITEMS, TEXT, DEPTH = 300_000, 2**24, 100  # values, characters, and containers within each other
NAME = 100  # characters of a name that a message shows
LARGEST = 2**63
ALONE = "save the state dict alone, torch.save(network.state_dict(), FILE)"
ENDLESS = f"its values are too many, or hold one another without end: {ALONE}"
# Settings and numbers that training scripts save beside their tensors.
LIGHTNING = tuple(f"{place}.AttributeDict" for place in (
    "pytorch_lightning.utilities.parsing", "lightning_fabric.utilities.data",
    "lightning.fabric.utilities.data", "lightning.pytorch.utilities.parsing"))  # fmt: skip
BESIDE = (
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core")
      for name in ("scalar", "_reconstruct")),
    "numpy.ndarray", "_codecs.encode", "torch.device", "torch.layout",
    "torch.torch_version.TorchVersion", "builtins.frozenset", "builtins.slice",
    *(f"{module}.{kind}{name}" for module in ("pathlib", "pathlib._local")
      for kind in ("", "Pure") for name in ("PosixPath", "WindowsPath", "Path")),
    *(f"builtins.{name}" for name in ("int", "float", "str", "list", "dict", "bool", "tuple",
                                      "long", "unicode", "xrange", "range", "complex")),
    *(f"torch.{name}" for name in ("float64", "float32", "float16", "bfloat16", "int64", "int32",
                                   "int16", "int8", "uint8", "bool")),
    *(f"datetime.{name}" for name in ("datetime", "date", "timedelta", "timezone")),
)  # fmt: skip
KINDS = {
    "Double": ("float64", 8), "Float": ("float32", 4), "Half": ("float16", 2),
    "BFloat16": ("bfloat16", 2), "Long": ("int64", 8), "Int": ("int32", 4), "Short": ("int16", 2),
    "Char": ("int8", 1), "Byte": ("uint8", 1), "Bool": ("bool", 1),
    "ComplexFloat": ("complex64", 8), "ComplexDouble": ("complex128", 16),
}  # fmt: skip


class Refused(Exception):
    """Why a file is refused, though it may be whole."""


class Damaged(Exception):
    """What is wrong with a file that is not whole."""


class Kind(NamedTuple):
    """The type of the values of a storage, and their size in bytes."""

    name: str
    size: int


class Storage(NamedTuple):
    """The values of one or several tensors: `count` of a kind, in the record `key`."""

    kind: Kind
    key: str
    count: int


class View(NamedTuple):
    """A tensor: what it shows of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """What its values take when none are shared."""
        return self.storage.kind.size * math.prod(self.shape)


class Plain(dict):
    """A dict of the file; attributes, as state dicts carry their versions, are left out."""

    def __setstate__(self, state: Any) -> None:
        pass


class Nothing:
    """What no tensor needs and many training scripts save beside them: it becomes None."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class Defaults(Plain):
    """A dict whose maker's arguments, as the factory of a defaultdict, are left out."""

    def __init__(self, *_: Any) -> None:
        super().__init__()


def _view(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> View:
    """A tensor, as torch._utils._rebuild_tensor_v2 is asked for it."""
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, Storage) or len(shape) != len(strides) or len(shape) > 64:
        raise Damaged("a tensor without data")
    known = all(type(n) is int and 0 <= n < LARGEST for n in numbers)
    if not known or math.prod(n for n in shape if n) >= LARGEST:
        raise Damaged("a tensor of impossible sizes")
    return View(storage, offset, tuple(shape), tuple(strides))


def _no_values(*_: Any) -> None:
    raise Refused("it declares a tensor without its values")


def _dtype(kind: Any, *_: Any) -> Nothing:
    if str(kind)[:1] == "O":
        raise Refused(f"reading it would call for objects in an array of numpy: {ALONE}")
    return Nothing()


NAMES = {
    "collections.OrderedDict": Plain,
    "collections.Counter": Plain,
    "collections.defaultdict": Defaults,
    **dict.fromkeys(("argparse.Namespace", *LIGHTNING), Plain),
    **dict.fromkeys(BESIDE, Nothing),
    "numpy.dtype": _dtype,
    "builtins.set": set,
    "torch.Size": tuple,
    "torch._utils._rebuild_tensor": _view,
    "torch._utils._rebuild_tensor_v2": _view,
    "torch._utils._rebuild_parameter": lambda view, *_: view,
    **{f"torch.{name}Storage": Kind(*kind) for name, kind in KINDS.items()},
    **{f"torch.{name}Tensor": _no_values for name in KINDS},
}


class Reader(Unpickler):
    """Reads a pickle in which names mean what NAMES says."""

    def __init__(self, file: BinaryIO, storages: dict[str, Storage]) -> None:
        super().__init__(file)
        self._storages = storages

    def find_class(self, module: str, name: str) -> Any:
        """Raises Refused for a name that tensors and plain values do not need."""
        called = f"{module.replace('__builtin__', 'builtins')}.{name}"  # Python 2's
        if called not in NAMES:
            raise Refused(f"reading it would call {called[:NAME]}, "
                          f"and only tensors and plain values load: {ALONE}")
        return NAMES[called]

    def persistent_load(self, pid: Any) -> Storage:
        """A storage: its kind, key, place and number of values."""
        word, kind, key, _, count, *rest = pid
        if word != "storage" or not isinstance(kind, Kind) or not isinstance(key, str) or any(rest):
            raise Damaged("data of an unknown kind")
        if type(count) is not int or count < 0:
            raise Damaged("data of an impossible size")
        storage = Storage(kind, key, count)
        if self._storages.setdefault(key, storage) != storage:
            raise Damaged("data of two kinds under one name")
        return storage


class Tree:
    """Content as JSON: containers and tensors are objects of one key, which names their kind."""

    def __init__(self, size: int) -> None:
        self.views: set[View] = set()
        self._size, self._items, self._text = size, ITEMS, TEXT

    def of(self, value: Any, depth: int = 0) -> Any:
        """The JSON of a value. Raises Refused for one that is not plain, or never ends."""
        self._items -= 1
        if self._items < 0 or depth > DEPTH:
            raise Refused(ENDLESS)
        if isinstance(value, Nothing | type):
            return None
        if isinstance(value, View):
            self._take(value)
            return {"view": (value.storage.key, value.shape, value.strides, value.offset)}
        if isinstance(value, dict):
            pairs = [(self._key(k), self.of(v, depth + 1)) for k, v in value.items()]
            return {"dict": pairs}
        for kind in (list, tuple, set):
            if type(value) is kind:
                return {kind.__name__: [self.of(item, depth + 1) for item in value]}
        return self._key(value)

    def _key(self, value: Any) -> Any:
        plain = value is None or type(value) in (bool, int, float, str)
        if not plain or type(value) is int and not -LARGEST <= value < LARGEST:
            kind = type(value).__name__
            raise Refused(f"it holds a {kind}, and only tensors and plain values load: {ALONE}")
        self._text -= len(value) if isinstance(value, str) else 0
        if self._text < 0:
            raise Refused(ENDLESS)
        return value

    def _take(self, view: View) -> None:
        if view.bytes > self._size:
            raise Refused(f"it declares a tensor of shape {view.shape} in {self._size:,} bytes")
        pairs = zip(view.shape, view.strides, strict=True)
        last = view.offset + sum((length - 1) * stride for length, stride in pairs)
        if 0 not in view.shape and last >= view.storage.count:
            raise Damaged("a tensor reaches beyond its data")
        self.views.add(view)

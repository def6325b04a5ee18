"""Archives of datasets: nothing in them is written outside their folder."""

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager

from utils.files import leads_outside


@contextmanager
def guarded() -> Iterator[None]:
    """Within, a tar file with a member that leads outside its folder raises ValueError.

    zipfile keeps such members inside by itself. Raises OSError where Python has no filter.
    """
    if not hasattr(tarfile, "data_filter"):
        raise OSError("Python before 3.10.12 and 3.11.4 unpacks archives unsafely: update it")
    before = vars(tarfile.TarFile).get("extraction_filter")
    tarfile.TarFile.extraction_filter = staticmethod(_inside)
    try:
        yield
    except tarfile.TarError as error:
        raise ValueError(str(error)) from error
    finally:
        tarfile.TarFile.extraction_filter = before


def _inside(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
    """The library's filter, which would strip the root from an absolute name and go on."""
    if leads_outside(member.name):
        raise tarfile.OutsideDestinationError(member, member.name)
    return tarfile.data_filter(member, folder)

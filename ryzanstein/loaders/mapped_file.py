"""A file mapped into memory, with views of its parts and advice to the kernel."""

from __future__ import annotations

import mmap
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from ryzanstein.errors import CorruptFileError, ModelLoadError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import DTypeLike, NDArray

__all__ = ["MappedFile"]

_MADV_POPULATE_READ = 22  # Linux 5.14; the mmap module has no name for it


class MappedFile:
    """A read-only map of a whole file; nothing is read until it is touched.

    `data` is the map, `status` what the system says of the file.
    """

    def __init__(self, path: Path, kind: str, minimum_bytes: int) -> None:
        """Map a file; `kind` is what to call its format in errors.

        Raises:
            ModelLoadError: the file is missing or unreadable.
            CorruptFileError: it is shorter than any file of its kind.
        """
        self.path = path
        try:
            with path.open("rb") as file:
                self.status = os.fstat(file.fileno())
                if self.status.st_size < minimum_bytes:
                    raise CorruptFileError(
                        f"{path} has {self.status.st_size} bytes and cannot hold a {kind} header; "
                        "download the file again"
                    )
                self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError as error:
            raise ModelLoadError(f"{path} does not exist; download the file again") from error
        except CorruptFileError:
            raise
        except OSError as error:
            raise ModelLoadError(f"{path} cannot be read: {error.strerror or error}") from error

    def view(self, begin: int, dtype: DTypeLike, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return a read-only array of what starts at a byte.

        At an offset that its dtype cannot be read from in place it is copied.
        """
        dtype = np.dtype(dtype)
        count = int(np.prod(shape, dtype=object))
        if count == 0:
            return np.empty(shape, dtype)
        flat = np.frombuffer(self.data, dtype, count, begin)
        if not flat.flags.aligned:
            flat = flat.copy()
            flat.flags.writeable = False
        return flat.reshape(shape)

    def release(self, begin: int, nbytes: int) -> None:
        """Let the kernel drop the resident pages of a part; touching it reads them again."""
        first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (begin + nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first:
            self.data.madvise(mmap.MADV_DONTNEED, first, last - first)

    def populate(self) -> None:
        """Read the whole file into memory, in huge pages where its file system has them.

        Both are advice that an older kernel may refuse; the pages then come as they are touched.
        """
        for advice in (mmap.MADV_HUGEPAGE, _MADV_POPULATE_READ):
            with suppress(OSError):
                self.data.madvise(advice)

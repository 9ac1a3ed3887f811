"""Writing pseudo labels, in the background: a PNG file for each image, or tar files of many. Facts about what has been
written are noted in files, as records of one length in the order of the images: hashes, and places in tar files."""
import hashlib
import io
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from dataset.shards import PLACE, ShardWriter, name_key, shard_name
from utils.errors import naming

DIGEST = hashlib.sha256().digest_size  # bytes of a noted hash


def _png(label):
    """The bytes of a PNG file. label: as `host_copy` returns it."""
    content = io.BytesIO()
    Image.fromarray(label().numpy()).save(content, "PNG", compress_level=1)
    return content.getbuffer()


class PngWriter:
    """Writes a PNG file for each image, in several threads, and notes the hash of each at its place in the share."""

    def __init__(self, folder: Path, notes: Callable[[str], Path]):
        self.folder, self._lock = folder, threading.Lock()
        self._digests = open(notes("digests"), "wb")

    def write(self, index: int, name: str, label: Callable[[], Tensor]) -> None:
        """Write the label of the share's image `index`; any order will do."""
        png, path = _png(label), self.folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        with naming(path):
            path.write_bytes(png)
        with self._lock:
            self._digests.seek(index * DIGEST)
            self._digests.write(hashlib.sha256(png).digest())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._digests.close()


class TarWriter:
    """Writes images to tar files, in one thread, and notes the place of each image and the hash of each tar file.

    share: the numbers among all images of those that are written, a whole tar file's after the other. shard: the number
    of images in a tar file; the last may have fewer.
    """

    def __init__(self, folder: Path, share: Sequence[int], shard: int, notes: Callable[[str], Path]):
        self.folder, self.share, self.shard = folder, share, shard
        self._tar: ShardWriter | None = None
        self._digests, self._places = (open(notes(kind), "wb") for kind in ("digests", "places"))

    def write(self, index: int, name: str, label: Callable[[], Tensor]) -> None:
        """Append the label of the share's image `index`."""
        png, number = _png(label), self.share[index] // self.shard
        self._tar = self._tar or ShardWriter(self.folder / shard_name(number))
        place = number, self._tar.add(f"{name}.png", png), len(png), name_key(name)
        self._places.write(np.array([place], PLACE).tobytes())
        if (index + 1) % self.shard == 0 or index + 1 == len(self.share):
            self._digests.write(self._tar.finish())
            self._tar = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for file in (self._tar, self._digests, self._places):
            if file:
                file.close()

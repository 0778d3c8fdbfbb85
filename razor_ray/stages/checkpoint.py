"""The state of a training that is under way, in a file beside its result."""

from __future__ import annotations

import io
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pyarrow.fs as pafs
import torch

from razor_ray.run_store import write_file


@dataclass
class Checkpoint:
    """A file that a training which is begun again goes on from.

    Parameters
    ----------
    filesystem : FileSystem
    path : str
    of : str
        What is trained, on what, and how. A file that tells of something else is none.
    seconds : float
        Between two writes, at least.
    """

    filesystem: pafs.FileSystem
    path: str
    of: str
    seconds: float
    spent: float = field(default=0.0, init=False)
    """Seconds that were spent on what was loaded."""
    _begun: float = field(default_factory=time.monotonic, init=False)
    _last_write: float = field(default_factory=time.monotonic, init=False)

    def load(self) -> dict[str, Any] | None:
        """The state that was saved last; None if there is none, or it is another training's or half of one."""
        if self.filesystem.get_file_info(self.path).type != pafs.FileType.File:
            return None
        with self.filesystem.open_input_file(self.path) as stream:
            content = stream.read()
        try:
            found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception:  # torch has no type for it: where writes go to their place, a part of a file may be there
            return None
        if found["of"] != self.of:
            return None
        self.spent = found["spent"]
        return found["state"]

    def save(self, state: dict[str, Any]) -> None:
        """Keep a state, unless one was kept a moment ago."""
        now = time.monotonic()
        if now - self._last_write < self.seconds:
            return
        self._last_write = now
        content = io.BytesIO()
        torch.save({"of": self.of, "spent": self.spent + now - self._begun, "state": state}, content)
        with suppress(OSError):  # the next may succeed; without any a training that is begun again is begun anew
            write_file(self.filesystem, self.path, content.getvalue())

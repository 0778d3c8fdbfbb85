"""Energy that a machine has used, from the counters that its processors and GPUs keep."""

from __future__ import annotations

import math
from pathlib import Path

_RAPL = Path("/sys/class/powercap")


def counters(rapl: Path = _RAPL) -> dict[str, tuple[float, float]]:
    """Energy counters of this machine, those that exist and may be read.

    Intel's and AMD's RAPL (whole packages; usually readable by root only) and NVIDIA's NVML, if its Python package is
    installed.

    Returns
    -------
    dict
        Name to (joules since some moment, joules at which the counter starts again at 0, infinite if it does not).
    """
    return _rapl_counters(rapl) | _nvml_counters()


def joules_between(before: dict[str, tuple[float, float]], after: dict[str, tuple[float, float]]) -> float | None:
    """Joules used between two readings; None if no counter was there both times, or one has lost what it had counted.

    >>> joules_between({"package-0": (90.0, 100.0)}, {"package-0": (15.0, 100.0)})
    25.0
    """
    used = []
    for name in sorted(before.keys() & after.keys()):
        (joules_before, _), (joules, limit) = before[name], after[name]
        if joules < joules_before and limit == math.inf:
            return None  # its driver was loaded anew in between
        used.append((joules - joules_before) % limit)
    return sum(used) if used else None


def _rapl_counters(rapl: Path) -> dict[str, tuple[float, float]]:
    found = {}
    for folder in sorted(rapl.glob("intel-rapl:[0-9]*")):
        try:
            # Not parts of a package, such as its cores, nor the whole board: what they use would count twice.
            if not (folder / "name").read_text().startswith("package"):
                continue
            micro = float((folder / "energy_uj").read_text())
            limit = float((folder / "max_energy_range_uj").read_text())
        except (OSError, ValueError):
            continue
        found[folder.name] = (micro / 1e6, limit / 1e6)
    return found


def _nvml_counters() -> dict[str, tuple[float, float]]:
    try:
        import pynvml  # pyright: ignore[reportMissingImports]  (optional: the package nvidia-ml-py)

        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return {
            f"gpu-{index}": (pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3, float("inf"))
            for index, handle in enumerate(handles)
        }
    except Exception:  # no package, no driver, a card without the counter: NVML has an exception for each
        return {}

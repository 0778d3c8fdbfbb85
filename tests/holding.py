"""Memory to be measured. Apart, since the process that holds it loads this module, and of the tests nothing else."""

import subprocess
import sys


def hold(num_bytes: int) -> int:
    """So many bytes here and as many in a child, for three seconds."""
    kept = b"1" * num_bytes
    child = subprocess.Popen([sys.executable, "-c", f"import time; x = b'1' * {num_bytes}; time.sleep(3)"])
    child.wait()
    return len(kept)

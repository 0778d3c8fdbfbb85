"""`ray job submit --working-dir . -- python jobs/prune.py ...`: the arguments of `razor-ray prune`."""

import sys

from razor_ray.cli import run

if __name__ == "__main__":
    sys.exit(run("prune", sys.argv[1:]))

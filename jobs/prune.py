"""`ray job submit --working-dir . -- python jobs/prune.py ...`: the arguments of `razor-ray prune`."""

import sys

from razor_ray.cli import leave, run

if __name__ == "__main__":
    leave(run("prune", sys.argv[1:]))

"""`ray job submit --working-dir . -- python jobs/compare.py ...`: the arguments of `razor-ray compare`."""

import sys

from razor_ray.cli import leave, run

if __name__ == "__main__":
    leave(run("compare", sys.argv[1:]))

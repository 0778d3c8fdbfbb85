"""`ray job submit --working-dir . -- python jobs/train.py ...`: the arguments of `razor-ray train`."""

import sys

from razor_ray.cli import leave, run

if __name__ == "__main__":
    leave(run("train", sys.argv[1:]))

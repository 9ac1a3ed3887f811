"""run.py up to its first step: what the row `start` measures in a fresh process."""
import os
import sys

import run
from utils.cli import run_stage


def until_first_step(cfg):
    from trainer.ldbe_trainer import LDBETrainer
    LDBETrainer.step = lambda *_: os._exit(0)
    run.run(cfg)


if __name__ == "__main__":
    run_stage(__doc__, "config/ldbe_config.yml", until_first_step)
    sys.exit("no step was reached")

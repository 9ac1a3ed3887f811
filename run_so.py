"""Stage 0: train on the labelled source domain.

    python run_so.py [--config config/so_config.yml] [key=value ...]

Writes snapshot/<note>/source_only.pth.
"""

from utils.cli import leave, run_stage


def run(cfg):
    from trainer.loop import Trainer
    Trainer(cfg).run()


if __name__ == "__main__":
    leave(run_stage(__doc__, "config/so_config.yml", run, method="source_only"))

"""Train a network on the labelled source domain (stage 0 of LDBE).

    python run_so.py [--config config/so_config.yml] [key=value ...]

Writes snapshot/<note>/source_only.pth.
"""

from utils.cli import leave, run_stage
from utils.config import Config

USUAL_KEYS = ("note", "model", "init_weight", "num_classes", "source", "target", "num_steps", "learning_rate",
              "batch_size", "crop_src", "device", "amp", "seed")  # --help shows them first


def run(cfg: Config) -> None:
    """Train as a configuration says."""
    from trainer.loop import Trainer  # late, so that --help answers at once
    Trainer(cfg).run()


if __name__ == "__main__":
    leave(run_stage(__doc__, "config/so_config.yml", run, USUAL_KEYS, method="source_only"))

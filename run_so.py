"""Train a network on the labelled source domain (stage 0 of LDBE).

    python run_so.py [--config config/so_config.yml] [key=value ...]

Writes snapshot/<note>/source_only.pth.
"""

from utils.cli import leave, run_stage
from utils.config import Config


def run(cfg: Config) -> None:
    """Train as a configuration says."""
    from trainer.loop import Trainer  # late, so that --help answers at once
    Trainer(cfg).run()


if __name__ == "__main__":
    leave(run_stage(__doc__, "config/so_config.yml", run, method="source_only"))

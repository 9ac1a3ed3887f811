"""Stages 1 and 2: adapt to the unlabelled target domain.

    python run.py [--config config/ldbe_config.yml] [key=value ...]

`method: ld` (label denoising) starts from a source-only network and writes snapshot/<note>/ld.pth; `method: be`
(boundary enhancement) starts from that one (init_weight=snapshot/<note>/ld.pth) and writes snapshot/<note>/be.pth.
"""

from utils.cli import leave, run_stage
from utils.errors import ConfigError


def run(cfg):
    if cfg.method not in ("ld", "be"):
        raise ConfigError(f"method: {cfg.method!r} is no stage of run.py: use ld or be (run_so.py trains the source).")
    from trainer.ldbe_trainer import LDBETrainer  # late, so that --help and wrong keys answer at once
    LDBETrainer(cfg).run()


if __name__ == "__main__":
    leave(run_stage(__doc__, "config/ldbe_config.yml", run))

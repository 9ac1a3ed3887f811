"""Adapt a network to the unlabelled target domain, by LDBE's stages 1 and 2 or another method.

    python run.py [--config config/ldbe_config.yml] [key=value ...]

`method: ld` (label denoising) starts from a source-only network and writes snapshot/<note>/ld.pth; `method: be`
(boundary enhancement) starts from that one (init_weight=snapshot/<note>/ld.pth) and writes snapshot/<note>/be.pth.
Other methods are listed below and in docs/methods.md; `method: my_file.py:MyMethod` runs your own.
"""

from utils.cli import leave, run_stage
from utils.config import Config
from utils.errors import ConfigError


def run(cfg: Config) -> dict | None:
    """Run the method of a configuration. Returns the scores of `Trainer.run`. Raises ConfigError for a method that
    trains on the source."""
    from trainer.loop import Trainer  # late, so that --help answers at once
    if cfg.method_class.needs_source:
        raise ConfigError(f"method: {cfg.method!r} trains on the source and is no stage of run.py: run_so.py runs it.")
    return Trainer(cfg).run()


if __name__ == "__main__":
    leave(run_stage(__doc__, "config/ldbe_config.yml", run))

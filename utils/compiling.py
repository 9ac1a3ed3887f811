"""How torch.compile works in this project."""
import torch

# Of one function. All blocks of a class are one: a ResNet has 8 kinds of them, each compiled for crops with gradients
# and without (a teacher), for whole images with batch and with running statistics, and for every other size.
VARIANTS = 128


def prepare_compiler() -> None:
    """Let torch.compile leave as it is what it cannot compile, for example because there is no compiler, and compile as
    many variants of a function as a run needs. Beyond its own limit of 8, which one labelling pass of a ResNet reaches,
    torch would run all that follows uncompiled."""
    config = torch._dynamo.config
    config.suppress_errors = True
    config.optimize_ddp = False  # it splits what is larger than a block
    config.cache_size_limit = max(config.cache_size_limit, VARIANTS)  # newer versions: recompile_limit, the same
    config.accumulated_cache_size_limit = max(config.accumulated_cache_size_limit, 16 * VARIANTS)

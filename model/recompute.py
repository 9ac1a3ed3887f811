"""Saving memory in training: what is inside a block is computed again in the backward pass (Chen et al., 2016)."""
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


def recomputed(call: Callable, owner: nn.Module, *args: Any, again: Callable = contextlib.nullcontext,
               preserve_rng_state: bool = True, **kwargs: Any) -> Any:
    """call(*args, **kwargs), whose inner tensors are computed again when the backward pass needs them; then torch's
    generators draw the same numbers, and the running statistics of `owner`, whose forward pass it is, stay. again():
    a context manager to enter for the second time as well. Torch raises RuntimeError, in the backward pass, where an
    argument has been changed in place meanwhile."""
    @contextlib.contextmanager
    def second_time():
        with copied_buffers(owner), again():
            yield

    return checkpoint(call, *args, use_reentrant=False, preserve_rng_state=preserve_rng_state,
                      context_fn=lambda: (contextlib.nullcontext(), second_time()), **kwargs)


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The blocks of a network: children with children of their own in a Sequential or ModuleList, the outermost ones,
    each once."""
    seen = set()

    def walk(parent):
        for child in parent.children():
            held = isinstance(parent, (nn.Sequential, nn.ModuleList))
            if held and list(child.children()) and not isinstance(child, (nn.ModuleList, nn.ModuleDict)):
                if id(child) not in seen:
                    seen.add(id(child))
                    yield child
            else:
                yield from walk(child)
    return walk(module)


@contextlib.contextmanager
def copied_buffers(module: nn.Module) -> Iterator[None]:
    """Within, the module works on copies of its buffers: a second look at the same batch must not move the running
    statistics twice."""
    kept = [(owner, name, buffer) for owner in module.modules() for name, buffer in owner.named_buffers(recurse=False)]
    for owner, name, buffer in kept:
        setattr(owner, name, buffer.clone())
    try:
        yield
    finally:
        for owner, name, buffer in kept:
            setattr(owner, name, buffer)

"""torch.compile: what a run compiles stays in use. The compiler is replaced by one that counts, which takes no time."""
import pytest
import torch
from torch import nn

from model.build import build_model
from model.deeplabv2 import Bottleneck
from trainer import fused_losses
from utils.config import load_config

pytestmark = pytest.mark.slow
CLASSES = 19


@pytest.fixture
def calls(monkeypatch):
    """What compiled code was called, in order."""
    called, compiled, limits = [], torch.compile, {}

    def backend(graph, _):
        return lambda *arguments: called.append(graph) or graph(*arguments)

    def compile_module(module, **options):
        module._compiled_call_impl = compiled(module._call_impl, **{**options, "backend": backend})
    monkeypatch.setattr(torch, "compile", lambda function, **options: compiled(function, **{
        **options, "backend": backend}))
    monkeypatch.setattr(nn.Module, "compile", compile_module)
    config = torch._dynamo.config
    for name in ("cache_size_limit", "accumulated_cache_size_limit", "suppress_errors"):
        limits[name] = getattr(config, name)
    config.cache_size_limit = 8  # torch's own
    torch._dynamo.reset()
    yield called
    for name, value in limits.items():
        setattr(config, name, value)
    torch._dynamo.reset()
    fused_losses._compiled.cache_clear()


def test_all_blocks_stay_compiled_in_training_labelling_and_validation_by_turns(calls, tmp_path):
    (tmp_path / "c.yml").write_text("layers: [2, 2, 2, 2]\nwidth: 4\ncompile: true\ninit_weight: None\namp: 'off'\n"
                                    "method: source_only")
    network, _ = build_model(load_config(tmp_path / "c.yml"), torch.device("cpu"))
    blocks = sum(isinstance(module, Bottleneck) for module in network.modules())
    crops, image = torch.randn(2, 3, 40, 40), torch.randn(1, 3, 40, 72)

    def label(which):
        network.use_statistics(which)
        with torch.no_grad():
            network.score_map(image)

    def train():
        network.train()
        network(crops).sum().backward()
    for _ in range(2):
        for work in (lambda: label("batch"), train, lambda: label("running")):
            calls.clear()
            work()
            assert len(calls) == blocks == 8


def test_the_losses_of_every_rank_are_compiled(calls):
    logits = torch.randn(1, CLASSES, 6, 6, requires_grad=True)
    label = torch.randint(0, CLASSES, (1, 6, 6))
    for entropy in ("released", "shannon"):
        for rank in range(2, CLASSES + 1):
            calls.clear()
            sum(fused_losses.ld_losses(logits, label, rank, entropy=entropy, compile=True).values()).backward()
            assert len(calls) == 2, (entropy, rank)  # forward and backward

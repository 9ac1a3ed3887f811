"""A network and what it expects and gives (for DeepLabV2 alone)."""
import torch
import torch.nn.functional as F
from torch import nn

from model import deeplabv2
from utils.constants import HOUSE_INPUT


class Segmenter(nn.Module):
    """Stand-in."""

    has_batch_norm = True
    remarks = ()

    def __init__(self, network):
        super().__init__()
        self.network = network

    def prepare(self, pixels):
        offset = torch.tensor(HOUSE_INPUT.mean, device=pixels.device).view(3, 1, 1)
        return pixels.permute(0, 3, 1, 2).contiguous().flip(1).float() - offset

    def state_dict(self, *a, **k):
        return self.network.state_dict(*a, **k)

    def load_state_dict(self, state, strict=True):
        return self.network.load_state_dict(state, strict)

    def score_map(self, x):
        return self.network.score_map(x)

    def forward(self, x, size=None):
        return self.network(x, size)

    def upsample(self, scores, size):
        return deeplabv2.upsample(scores, size)

    def use_statistics(self, which):
        self.train(which == "batch")

    def parameter_groups(self, b, h):
        return deeplabv2.parameter_groups(self.network, b, h)

    def compile_blocks(self):
        deeplabv2.compile_blocks(self.network)

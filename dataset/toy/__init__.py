"""A procedural toy street world, written in the real on-disk layouts of GTA5, SYNTHIA and Cityscapes.

    python -m dataset.toy --root data/toy --seed 0

GTA5 and SYNTHIA are drawn in the 'game' domain, Cityscapes in the 'camera' domain. The two differ only in the tables of
`looks`. Every image is a pure function of the parameters, its domain, its split and its index. In order of work:
`canvas` (geometry and strokes), `street` (ground and roadside), `vehicles`, `things` (people and the rest, the whole
scene), `camera` (from scene to picture), `files` (the world on disk).
"""
from dataset.toy.files import write_toy_world

__all__ = ["write_toy_world"]

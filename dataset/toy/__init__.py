"""A procedural toy street world, written in the real on-disk layouts of GTA5, SYNTHIA and Cityscapes.

    python -m dataset.toy --root data/toy --seed 0

GTA5 and SYNTHIA are drawn in the 'game' domain, Cityscapes in the 'camera' domain; the tables of `looks` are the whole
domain shift. Every image is a pure function of the parameters, its domain, its split and its index. In order of work:
`street` (geometry, brushes, ground and roadside), `things` (what stands there, and the whole scene), `camera` (from
scene to picture), `files` (the world on disk).
"""
from dataset.toy.files import write_toy_world

__all__ = ["write_toy_world"]

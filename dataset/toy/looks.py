"""The two domains of the toy world: how they look and what stands in their streets."""
from dataclasses import dataclass


@dataclass(frozen=True)
class Look:
    """Appearance of a domain; images are RGB in 0..1. Light, cast and haze of each image vary around these values."""

    exposure: float  # factor on the image
    gamma: float  # exponent after the exposure; above 1 darkens the middle tones
    contrast: float  # factor on the difference from 0.45
    red: float  # colour cast: factor on each channel
    green: float
    blue: float
    saturation: float  # factor on the difference from the pixel's own grey
    haze: float  # optical depth towards grey at 60 m
    focus: float  # above 0: unsharp mask of that amount; below 0: that share of a blurred image
    noise: float  # standard deviation of the sensor noise
    vignette: float  # darkening in the corners
    jpeg_loss: float  # 100 minus the JPEG quality; below 1: not compressed
    window_pitch: float  # metres between windows
    leaf_size: float  # metres, radius of a tree's blobs
    road_grain: float  # amplitude of the asphalt's texture
    spread: float  # standard deviation of the per-image light, in photographic stops


@dataclass(frozen=True)
class Layout:
    """What stands in a street: expected numbers per image where a comment says nothing else."""

    horizon: float  # row, as a share of the height
    hood: bool  # own bonnet at the lower edge
    green_side: float  # share of the roadside plots that are bushes instead of houses
    terrain: float  # share of the sides with a strip of grass; so for wall and fence
    wall: float
    fence: float
    train: float  # share of the images with a train and its rails
    tree: float
    pole: float  # each carries a light, a sign or both
    person: float
    rider: float  # half on bicycles, half on motorcycles
    bicycle: float
    motorcycle: float
    car: float
    truck: float
    bus: float
    static: float  # bins and boxes, ignored


# STRENGTH scales every appearance effect: 0 gives both domains the game look, 1 the camera look below.
STRENGTH = 0.8
LOOK = {
    "game": Look(exposure=1.05, gamma=0.95, contrast=1.1, red=1.05, green=1.0, blue=0.94, saturation=1.25, haze=0.08,
                 focus=0.35, noise=0.004, vignette=0.0, jpeg_loss=0.0, window_pitch=2.5, leaf_size=0.42,
                 road_grain=0.03, spread=0.18),
    "camera": Look(exposure=0.92, gamma=1.08, contrast=0.8, red=0.95, green=1.02, blue=0.95, saturation=0.6, haze=0.55,
                   focus=-0.55, noise=0.016, vignette=0.25, jpeg_loss=22.0, window_pitch=3.3, leaf_size=0.62,
                   road_grain=0.05, spread=0.25),
}
LAYOUT = {
    "game": Layout(horizon=0.43, hood=False, green_side=0.25, terrain=0.45, wall=0.36, fence=0.36, train=0.42, tree=1.5,
                   pole=2.7, person=2.6, rider=1.3, bicycle=0.9, motorcycle=0.9, car=2.4, truck=0.5, bus=0.45,
                   static=0.5),
    "camera": Layout(horizon=0.40, hood=True, green_side=0.4, terrain=0.4, wall=0.32, fence=0.32, train=0.38, tree=2.4,
                     pole=3.0, person=3.0, rider=1.4, bicycle=1.4, motorcycle=0.7, car=3.0, truck=0.4, bus=0.4,
                     static=1.2),
}
# Texture amplitude per class: (fine grain, patches of 3 pixels, patches of 16 pixels).
GRAIN = {"building": (.015, .02, .03), "wall": (.04, .05, .05), "fence": (.02, .02, .02), "vegetation": (.05, .10, .06),
         "terrain": (.10, .05, .06), "sidewalk": (.02, .01, .03), "sky": (0, 0, .01), "rail track": (.1, .06, .03)}

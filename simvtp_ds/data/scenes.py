"""What the drawn corpus shows, and how it is told: scenes and their captions.

A scene is a pure function of (seed, split, index), its caption of the scene.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np

COLOURS = {
    "red": (212, 40, 38),
    "orange": (242, 138, 28),
    "yellow": (248, 222, 48),
    "green": (46, 160, 66),
    "blue": (42, 84, 208),
    "purple": (134, 52, 172),
    "pink": (246, 142, 190),
    "white": (244, 244, 244),
    "black": (24, 24, 24),
    "gray": (128, 128, 128),
    "brown": (124, 80, 46),
}
OBJECT_COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
TEXTURES = ("plain", "striped", "dotted", "checked")
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "diamond", "heart", "arrow", "crescent")
ROUND = ("circle", "ring")  # a turn of these cannot be seen
SIZES = {"small": 0.17, "large": 0.31}  # radius as a share of SIDE
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
MOTIONS = (*DIRECTIONS, "bounces", "spins", "grows", "shrinks", "circles", "still")
SPEEDS = {"slowly": 0.5, "": 1.0, "quickly": 1.6}

# Short sentences, at most 14 words: text is most of what a small model computes.
_SIZE_WORDS = {"small": ("small", "small", "tiny"), "large": ("large", "large", "big")}
_MOTION_WORDS = {
    "bounces": ("bounces", "is bouncing"),
    "spins": ("spins", "is spinning"),
    "grows": ("grows", "is growing", "gets bigger"),
    "shrinks": ("shrinks", "is shrinking", "gets smaller"),
    "circles": ("circles", "goes round in circles"),
    "still": ("stays still", "does not move", "is standing still"),
}
_DIRECTION_WORDS = ("moves {}", "slides {}", "is moving {}")


@dataclass(frozen=True)
class Scene:
    """What a clip shows: seven nameable properties, which the caption tells, and the seed of all the rest."""

    shape: str
    colour: str
    size: str
    motion: str
    speed: str
    ground: str
    texture: str
    seed: tuple[int, ...]

    def named(self) -> tuple:
        """The properties without the seed: two scenes that agree here deserve the same caption."""
        return astuple(self)[:-1]


def _draw_scene(rng: np.random.Generator, seed: tuple[int, ...]) -> Scene:
    shape, colour = str(rng.choice(SHAPES)), str(rng.choice(OBJECT_COLOURS))
    motion = str(rng.choice([m for m in MOTIONS if m != "spins" or shape not in ROUND]))
    hurried = motion in ("spins", "bounces", "circles", *DIRECTIONS)
    return Scene(
        shape=shape,
        colour=colour,
        size=str(rng.choice(list(SIZES))),
        motion=motion,
        speed=str(rng.choice(list(SPEEDS))) if hurried else "",
        ground=str(rng.choice([c for c in COLOURS if c != colour])),
        texture=str(rng.choice(TEXTURES)),
        seed=seed,
    )


def make_scenes(train: int, test: int, seed: int) -> tuple[list[Scene], list[Scene]]:
    """The scenes of both splits. Test scenes differ from one another and from every training scene in what is named."""
    taken: set[tuple] = set()

    def draw(split: int, index: int) -> Scene:
        rng = np.random.default_rng((seed, split, index))
        while True:
            scene = _draw_scene(rng, (seed, split, index))
            if scene.named() not in taken:
                return scene

    tests = []
    for index in range(test):
        tests.append(draw(1, index))
        taken.add(tests[-1].named())
    return [draw(0, index) for index in range(train)], tests


def caption(scene: Scene) -> str:
    """One English sentence that names all seven properties, in words that vary with the scene's seed."""
    rng = np.random.default_rng((*scene.seed, 1))
    thing = f"{rng.choice(_SIZE_WORDS[scene.size])} {scene.colour} {scene.shape}"
    if scene.motion in DIRECTIONS:
        action = str(rng.choice(_DIRECTION_WORDS)).format(scene.motion)
    else:
        action = str(rng.choice(_MOTION_WORDS[scene.motion]))
    action = f"{action} {scene.speed}".strip()
    texture = "" if scene.texture == "plain" and rng.random() < 0.5 else f"{scene.texture} "
    ground = f"a {texture}{scene.ground} background"
    templates = (
        f"a {thing} {action} over {ground}",
        f"a {thing} {action} on {ground}",
        f"on {ground} a {thing} {action}",
    )
    return str(rng.choice(templates))

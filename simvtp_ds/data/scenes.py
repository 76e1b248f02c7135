"""What the drawn corpus shows, and how it is told: scenes and their captions.

A scene is a pure function of (seed, split, index), its captions of the scene.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from itertools import product

import numpy as np

# Objects are bright and backgrounds dark: what gets brighter, an object arrives at. Where either may be the brighter
# one, a small model needs several times as many steps to tell left from right.
OBJECT_COLOURS = {
    "red": (212, 40, 38),
    "yellow": (248, 222, 48),
    "green": (60, 200, 80),
    "blue": (60, 120, 250),
    "white": (244, 244, 244),
}
GROUND_COLOURS = {
    "black": (16, 16, 16),
    "gray": (60, 60, 60),
    "brown": (84, 50, 24),
    "navy": (14, 22, 84),
    "purple": (74, 24, 96),
    "olive": (58, 62, 14),
}
TEXTURES = ("plain", "striped", "dotted", "checked")
SHAPES = ("circle", "square", "triangle", "cross")
SIZES = {"small": 0.22, "large": 0.39}  # radius as a share of SIDE
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
MOTIONS = (*DIRECTIONS, "spins", "grows", "shrinks")
SPEEDS = {"slowly": 0.5, "": 1.0, "quickly": 1.6}
# What a sentence such as "a red circle moves left" names; the turn of a circle cannot be seen.
DEEDS = [deed for deed in product(SHAPES, OBJECT_COLOURS, MOTIONS) if deed[0] != "circle" or deed[2] != "spins"]

# Short sentences, at most 14 words: text is most of what a small model computes.
_SIZE_WORDS = {"small": ("small", "small", "tiny"), "large": ("large", "large", "big")}
_MOTION_WORDS = {
    "spins": ("spins", "is spinning"),
    "grows": ("grows", "is growing", "gets bigger"),
    "shrinks": ("shrinks", "is shrinking", "gets smaller"),
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


def _draw_scene(rng: np.random.Generator, seed: tuple[int, ...], deed: tuple[str, str, str]) -> Scene:
    shape, colour, motion = deed
    hurried = motion == "spins" or motion in DIRECTIONS
    return Scene(
        shape=shape,
        colour=colour,
        size=str(rng.choice(list(SIZES))),
        motion=motion,
        speed=str(rng.choice(list(SPEEDS))) if hurried else "",
        ground=str(rng.choice(list(GROUND_COLOURS))),
        texture=str(rng.choice(TEXTURES)),
        seed=seed,
    )


def make_scenes(train: int, test: int, seed: int) -> tuple[list[Scene], list[Scene]]:
    """The scenes of both splits. Test scenes differ from one another and from every training scene in what is named.

    The test scenes go through all of DEEDS in turn, so that a gallery of that many clips has an answer to each of them.

    Raises:
        ValueError: there are not as many test scenes to tell apart.
    """
    most = len(DEEDS) * len(SIZES) * len(GROUND_COLOURS) * len(TEXTURES)  # what grows has no speed to differ in
    if test > most:
        raise ValueError(f"{test} test clips are asked for: there are {most} that differ in what their captions name")
    taken: set[tuple] = set()
    turns = np.random.default_rng((seed, 2)).permutation(len(DEEDS))

    def draw(split: int, index: int) -> Scene:
        rng = np.random.default_rng((seed, split, index))
        while True:
            deed = turns[index % len(turns)] if split == 1 else rng.integers(len(DEEDS))
            scene = _draw_scene(rng, (seed, split, index), DEEDS[int(deed)])
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
    action = f"{_action(scene, rng)} {scene.speed}".strip()
    texture = "" if scene.texture == "plain" and rng.random() < 0.5 else f"{scene.texture} "
    ground = f"a {texture}{scene.ground} background"
    templates = (
        f"a {thing} {action} over {ground}",
        f"a {thing} {action} on {ground}",
        f"on {ground} a {thing} {action}",
    )
    return str(rng.choice(templates))


def training_caption(scene: Scene) -> str:
    """`caption` or, for seven scenes in ten, only what a person would ask for: "a red circle moves left".

    Whole captions alone teach little about shape and motion: size, colours and texture mostly tell 64 clips apart.
    """
    rng = np.random.default_rng((*scene.seed, 3))
    if rng.random() < 0.3:
        return caption(scene)
    return f"a {scene.colour} {scene.shape} {_action(scene, rng)}"


def _action(scene: Scene, rng: np.random.Generator) -> str:
    if scene.motion in DIRECTIONS:
        return str(rng.choice(_DIRECTION_WORDS)).format(scene.motion)
    return str(rng.choice(_MOTION_WORDS[scene.motion]))

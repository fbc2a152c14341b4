"""The subjects of the composed scenes: short names that say what the emoji shows, and their code
points. Both styles of the sets have all of them, and none looks like another.
"""

from __future__ import annotations

SUBJECTS: dict[str, str] = {
    "red apple": "1f34e", "banana": "1f34c", "strawberry": "1f353", "watermelon": "1f349",
    "pineapple": "1f34d", "carrot": "1f955", "mushroom": "1f344", "hamburger": "1f354",
    "birthday cake": "1f382", "doughnut": "1f369", "lemon": "1f34b", "tree": "1f333",
    "palm tree": "1f334", "cactus": "1f335", "sunflower": "1f33b", "tulip": "1f337",
    "star": "2b50", "sun": "2600", "rainbow": "1f308", "fire": "1f525",
    "cat": "1f408", "dog": "1f415", "horse": "1f40e", "cow": "1f404",
    "pig": "1f416", "rabbit": "1f407", "duck": "1f986", "penguin": "1f427",
    "owl": "1f989", "tropical fish": "1f420", "octopus": "1f419", "turtle": "1f422",
    "snail": "1f40c", "butterfly": "1f98b", "ladybug": "1f41e", "bee": "1f41d",
    "elephant": "1f418", "lion": "1f981", "panda": "1f43c", "frog": "1f438",
    "fox": "1f98a", "car": "1f697", "bus": "1f68c", "rocket": "1f680",
    "sailboat": "26f5", "house": "1f3e0", "castle": "1f3f0", "tent": "26fa",
    "bell": "1f514", "key": "1f511", "book": "1f4d5", "guitar": "1f3b8",
    "soccer ball": "26bd", "basketball": "1f3c0", "balloon": "1f388", "gift": "1f381",
    "teddy bear": "1f9f8", "crown": "1f451", "heart": "2764", "robot": "1f916",
}  # fmt: skip
NAMES = tuple(SUBJECTS)

# Soft backgrounds, RGB; a caption always names the one that is not white.
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255), "light blue": (196, 222, 245), "light green": (205, 235, 200),
    "light yellow": (250, 240, 190), "pink": (250, 210, 222), "lavender": (221, 210, 242),
    "beige": (240, 226, 206),
}  # fmt: skip


def a(noun: str) -> str:
    """The noun with its article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"

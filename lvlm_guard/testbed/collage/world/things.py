"""What can be in a collage: names, plurals, other names, and the code point under which every set of emoji has a picture of it."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Thing:
    """Something that has a picture.

    Args:
        name: Its name in captions and questions, of one word or several.
        code: Code points of its emoji as file names have them, such as "2600-fe0f".
        plural: Where adding an s will not do.
        synonyms: Other names that a caption may use for it, in the singular.
    """

    name: str
    code: str
    plural: str = ""
    synonyms: tuple[str, ...] = ()

    @property
    def plurals(self) -> str:
        """The name of several."""
        return self.plural or f"{self.name}s"

    @property
    def indefinite(self) -> str:
        """The name with its indefinite article."""
        return with_article(self.name)

    def counted(self, number: int) -> str:
        """Return the singular for one, the plural for more."""
        return self.name if number == 1 else self.plurals


def with_article(words: str) -> str:
    """Return words after "a" or "an", by their first letter; no name here needs another rule."""
    return f"{'an' if words[0] in 'aeio' or words.startswith('um') else 'a'} {words}"


THINGS: tuple[Thing, ...] = (
    Thing("dog", "1f415", synonyms=("puppy", "hound")),
    Thing("cat", "1f408", synonyms=("kitten", "kitty")),
    Thing("horse", "1f40e", synonyms=("pony",)),
    Thing("cow", "1f404", synonyms=("cattle", "bull", "calf")),
    Thing("pig", "1f416", synonyms=("piglet", "hog")),
    Thing("sheep", "1f411", "sheep", ("lamb", "ewe")),
    Thing("rooster", "1f413", synonyms=("chicken", "hen", "cock")),
    Thing("duck", "1f986", synonyms=("duckling",)),
    Thing("owl", "1f989"),
    Thing("penguin", "1f427"),
    Thing("rabbit", "1f407", synonyms=("bunny", "hare")),
    Thing("mouse", "1f401", "mice", ("rat",)),
    Thing("elephant", "1f418"),
    Thing("giraffe", "1f992"),
    Thing("zebra", "1f993"),
    Thing("monkey", "1f412", synonyms=("ape", "chimpanzee")),
    Thing("snake", "1f40d", synonyms=("serpent",)),
    Thing("turtle", "1f422", synonyms=("tortoise",)),
    Thing("frog", "1f438", synonyms=("toad",)),
    Thing("fish", "1f41f", "fish", ("goldfish",)),
    Thing("whale", "1f433"),
    Thing("crab", "1f980"),
    Thing("snail", "1f40c"),
    Thing("butterfly", "1f98b", "butterflies"),
    Thing("bee", "1f41d", synonyms=("honeybee", "bumblebee", "wasp")),
    Thing("spider", "1f577-fe0f"),
    Thing("camel", "1f42a"),
    Thing("bear", "1f43b", synonyms=("teddy bear",)),
    Thing("apple", "1f34e"),
    Thing("banana", "1f34c"),
    Thing("strawberry", "1f353", "strawberries"),
    Thing("lemon", "1f34b"),
    Thing("pineapple", "1f34d"),
    Thing("carrot", "1f955"),
    Thing("tomato", "1f345", "tomatoes"),
    Thing("mushroom", "1f344", synonyms=("toadstool",)),
    Thing("egg", "1f95a"),
    Thing("loaf of bread", "1f35e", "loaves of bread", ("bread", "loaf", "toast")),
    Thing("piece of cheese", "1f9c0", "pieces of cheese", ("cheese", "slice of cheese")),
    Thing("pizza", "1f355", synonyms=("slice of pizza", "piece of pizza")),
    Thing("hamburger", "1f354", synonyms=("burger", "cheeseburger")),
    Thing("cake", "1f370", synonyms=("piece of cake", "slice of cake")),
    Thing("cookie", "1f36a", synonyms=("biscuit",)),
    Thing("hot dog", "1f32d", synonyms=("hotdog",)),
    Thing("car", "1f697", synonyms=("automobile",)),
    Thing("bus", "1f68c", "buses"),
    Thing("truck", "1f69a", synonyms=("lorry",)),
    Thing("train", "1f682", synonyms=("locomotive", "steam engine")),
    Thing("airplane", "2708-fe0f", synonyms=("plane", "aeroplane", "jet", "aircraft")),
    Thing("helicopter", "1f681"),
    Thing("rocket", "1f680", synonyms=("spaceship",)),
    Thing("bicycle", "1f6b2", synonyms=("bike",)),
    Thing("sailboat", "26f5", synonyms=("boat", "yacht", "sailing boat")),
    Thing("tractor", "1f69c"),
    Thing("book", "1f4d5", synonyms=("notebook",)),
    Thing("pencil", "270f-fe0f"),
    Thing("key", "1f511"),
    Thing("lock", "1f512", synonyms=("padlock",)),
    Thing("clock", "23f0", synonyms=("alarm clock", "alarm")),
    Thing("laptop", "1f4bb", synonyms=("computer", "laptop computer")),
    Thing("camera", "1f4f7"),
    Thing("television", "1f4fa", synonyms=("tv", "television set")),
    Thing("light bulb", "1f4a1", synonyms=("bulb", "lightbulb")),
    Thing("candle", "1f56f-fe0f"),
    Thing("umbrella", "2602-fe0f", synonyms=("parasol",)),
    Thing("hat", "1f3a9", synonyms=("top hat",)),
    Thing("shoe", "1f45f", synonyms=("sneaker",)),
    Thing("crown", "1f451"),
    Thing("soccer ball", "26bd", synonyms=("ball", "football")),
    Thing("guitar", "1f3b8", synonyms=("electric guitar",)),
    Thing("drum", "1f941"),
    Thing("hammer", "1f528"),
    Thing("chair", "1fa91"),
    Thing("teapot", "1fad6", synonyms=("tea pot", "kettle")),
    Thing("cup", "2615", synonyms=("mug", "coffee cup", "cup of coffee", "cup of tea")),
    Thing("tree", "1f333"),
    Thing("cactus", "1f335", "cactuses", ("cacti",)),
    Thing("rose", "1f339"),
    Thing("sun", "2600-fe0f"),
    Thing("moon", "1f319", synonyms=("crescent", "crescent moon")),
    Thing("star", "2b50"),
    Thing("cloud", "2601-fe0f"),
    Thing("house", "1f3e0", synonyms=("home", "cottage")),
    Thing("bone", "1f9b4"),
)
"""In the order that breaks ties; the order also numbers them, so new ones go to the end."""

NAMES: tuple[str, ...] = tuple(thing.name for thing in THINGS)
THING = MappingProxyType({thing.name: thing for thing in THINGS})
"""Things by name."""

NUMBERS: tuple[str, ...] = ("one", "two", "three", "four")
"""Words for the number of copies of a thing, from one on."""
SIZES: tuple[str, ...] = ("big", "small")
COLOURS: tuple[str, ...] = ("red", "yellow", "green", "blue", "purple", "brown", "black", "white")
"""The colours that a picture can be tinted with."""

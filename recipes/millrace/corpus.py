"""Short stories about rivers, mills and machines, from a seeded grammar.

A story has a cast (hero, place), a topic that selects its plot, an opening and an ending. `[a|b|c]` in a template is a
choice, `{name}` a member of the cast: that is the whole grammar, and `fill` is the whole engine.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping

from recipes.millrace.split import Split, draw, is_held_out

CHOICE = re.compile(r"\[([^\[\]]*)\]")
ARTICLE = re.compile(r"\b([Aa]) (?=[aeiou])")

HEROES = (
    ("Ada", "she"), ("Anton", "he"), ("Bela", "he"), ("Clara", "she"), ("Dora", "she"), ("Edwin", "he"),
    ("Elsa", "she"), ("Finn", "he"), ("Greta", "she"), ("Hugo", "he"), ("Ida", "she"), ("Jonas", "he"),
    ("Karl", "he"), ("Lena", "she"), ("Mara", "she"), ("Mira", "she"), ("Nils", "he"), ("Nora", "she"),
    ("Oskar", "he"), ("Otto", "he"), ("Paula", "she"), ("Rosa", "she"), ("Simon", "he"), ("Tilda", "she"),
    ("Tom", "he"), ("Vera", "she"), ("Willem", "he"), ("Yara", "she"),
)  # fmt: skip
PRONOUNS = {"she": ("she", "her", "her"), "he": ("he", "him", "his")}
TRADES = ("miller", "carpenter", "blacksmith", "ferryman", "baker", "weaver", "engineer", "farmer", "mason", "potter")
PLACES = (
    "a narrow valley", "the old town", "a green island", "the foot of a hill", "a quiet village",
    "the edge of the forest", "a windy plain", "the mouth of the river", "a stone bridge", "the north bank",
    "a bend in the river", "the upper lake",
)  # fmt: skip
ANIMALS = ("otter", "heron", "fox", "beaver", "duck", "swan", "hedgehog", "frog")
TOPICS = ("mill", "river", "water wheel", "machine", "bridge", "boat", "flood", "millstone", "gate", "pump", *ANIMALS)

OPENINGS = (
    "[Once upon a time|Long ago|Many years ago], a {trade} [named|called] {hero} lived [near|not far from] {place}.",
    "{hero} was a [young|old|patient|clever|careful] {trade} who lived [near|not far from] {place}.",
    "[Near|Not far from] {place} there lived a {trade} [named|called] {hero}.",
    "In the days when every village had a mill, a {trade} [named|called] {hero} worked [near|not far from] {place}.",
)
ENDINGS = (
    "From that day on, {hero} [never forgot|always remembered] {lesson}.",
    "That evening {hero} sat by the [river|fire|window] and [smiled|was content|slept well].",
    "And if you walk past [early in the morning|on a quiet evening], you can still hear {sound}.",
    (
        "[Everyone in the village|The whole village|Every neighbour] [thanked|cheered for] {hero}, and there was "
        "[warm bread|apple cake|hot soup] for all."
    ),
    "And so {hero} learned {lesson}.",
)
LESSONS = (
    "that water is patient", "to listen before acting", "that small parts move great wheels",
    "to ask a friend for help", "that a good machine needs a drop of oil", "to look at the sky before leaving home",
    "that slow work is sure work",
)  # fmt: skip
SOUNDS = (
    "the wheel turning",
    "the water singing",
    "the old stones humming",
    "a soft song over the water",
    "the gears clicking",
)

PLOTS: Mapping[str, tuple[str, ...]] = {
    "mill": (
        (
            "[One morning|One day|In autumn] the mill [stood still|made no sound], and no flour fell into the [sacks|"
            "bins]."
        ),
        "{hero} [climbed up the ladder|took a lamp|opened the heavy door] and looked at the [gears|shaft|wheel].",
        "A [branch|stone|piece of wood] was stuck between [two teeth of the great gear|the wheel and the wall].",
        "{they_c} pulled with both hands, but it [did not move|would not come out].",
        "Then {friend} [came by|came running] and brought a long [pole|rope|iron bar].",
        "Together they pulled until it came free, and the mill [began to turn|woke up with a groan].",
        "By [noon|evening] there were [seven|nine|twelve] sacks of [white|fine|fresh] flour by the door.",
    ),
    "river": (
        (
            "Every [day|morning] {they} walked along the river and [counted the boats|listened to the water|watched "
            "the fish]."
        ),
        "One [summer|spring] the river grew [thin|quiet|slow], and the [mill|wheel] could hardly turn.",
        "{hero} followed the river up the valley to find out why.",
        "High in the hills {they} found [a fallen tree|a heap of stones|a wall of mud] that held the water back.",
        "{they_c} [dug|worked|pulled] for [two|three] days, and {friend} came to help {them}.",
        "At last the water broke through and ran [laughing|shining|rushing] down to the village.",
    ),
    "water wheel": (
        "Behind the house stood a great water wheel with [twelve|twenty|thirty] wooden [buckets|paddles].",
        "[One night|One winter] the ice broke [three|four] of them, and the wheel [limped|shook] with every turn.",
        (
            "{hero} [cut new boards from an old oak|carved new paddles from ash wood], and {friend} brought [nails|"
            "iron straps|pegs]."
        ),
        "The first board was too [long|wide], and the second was too [short|thin], but the third one fitted.",
        (
            "When {they} opened the gate, the water [fell on the wheel|pushed the wheel], and it turned [smoothly|"
            "without a sound]."
        ),
    ),
    "machine": (
        "{hero} wanted to build a machine that could [lift stones|saw wood|wind rope|sort apples].",
        "{they_c} drew it [first|many times], with [three|five|seven] gears and one long lever.",
        "The first machine [fell apart|made only noise|ran backwards].",
        (
            '"[Do not worry|Try once more]," said {friend}. "[A machine learns slowly|Every machine begins with a '
            'mistake]."'
        ),
        "So {hero} [made the small gear larger|turned the belt around|put oil on every bearing].",
        "The second machine ran all day, and it [never stopped|hummed like a bee].",
    ),
    "bridge": (
        "The [old|wooden] bridge over the river was [weak|crooked], and nobody dared to cross it with a [cart|horse].",
        "{hero} [measured it|walked over it] [twice|three times] and shook {their} head.",
        '"We need [stones|strong beams]," {they} said, "and many hands."',
        "{friend} brought [a cart|two horses], and the neighbours brought [ropes|hammers|lamps].",
        "They worked from [spring|May] until [autumn|October], stone by stone.",
        (
            "On the last day a [cart full of grain|wagon full of flour] rolled over the bridge, and it did not "
            "[shake|move] at all."
        ),
    ),
    "boat": (
        "{hero} owned a small [red|blue|green] boat that carried [flour|apples|letters] down the river.",
        "One [foggy|stormy|dark] morning {they} could not see the [bank|lighthouse|landing].",
        "{they_c} heard a [bell|whistle|song] and turned the boat toward it.",
        "It was {friend}, who stood on the landing and [rang the bell|waved a lantern] again and again.",
        "The boat [touched the wood softly|came safely to the shore], and [nothing was wet|all was dry].",
    ),
    "flood": (
        "After [three|five|six] days of rain the river [rose|climbed] higher than anyone could remember.",
        "The water stood at the [door of the mill|third step], and the [wheel|gate] groaned.",
        "{hero} ran to the sluice and [turned the crank|pulled the lever] with all {their} strength.",
        "It was [rusty|stuck], so {friend} poured [oil|warm oil] on it and pulled as well.",
        "Slowly the gate opened, and the flood ran into the [side channel|old pond|meadow].",
        "In the morning the [sun came out|sky was blue], and the mill was still standing.",
    ),
    "millstone": (
        "The millstone was [a hundred years old|as old as the village], and its grooves were worn smooth.",
        "The flour came out [coarse|grey|warm], and the bread was [hard|flat].",
        "{hero} lifted the stone with a [crane|lever] and cut new grooves, line by line.",
        "It took [four|six|eight] days, and {friend} sharpened the [chisels|tools] every evening.",
        "Then the stone turned again, and the flour was as [soft as snow|fine as dust].",
    ),
    "gate": (
        "{hero} kept the gate that [lets the water into the millrace|holds back the pond].",
        "At [dawn|sunrise] {they} opened it, and at [dusk|sunset] {they} closed it, and {they} was never late.",
        "One [evening|night] the key was gone.",
        (
            "{hero} looked [under the bench|behind the stove] and [in the flour bin|in every pocket], but it was not "
            "there."
        ),
        (
            '"[Is this what you are looking for|Did you lose this]?" asked {friend}, and held up the key. It had '
            "fallen into the [grass|reeds]."
        ),
        "They closed the gate together, just as the [rain|storm] began.",
    ),
    "pump": (
        "The fields above the river were [dry|brown], and the [beans|cabbages] hung their leaves.",
        "So {hero} built a pump with a [long handle|leather seal|copper pipe].",
        "At first it only [coughed|hissed] and gave no water.",
        "{friend} looked inside and found a [leaf|pebble|frog] in the valve.",
        "{hero} took it out, pushed the handle [ten|twenty] times, and clear water ran into the [field|ditch].",
    ),
}
ANIMAL_PLOT = (
    (
        "[One day|One morning|In spring] {they} met {an_animal} that sat [by the millrace|under the bridge|next "
        "to the wheel]."
    ),
    '"[The water is too fast for me|I have lost my way home|The wheel took my nest]," said the {animal}.',
    (
        "{hero} thought for a while and [closed the gate a little|laid a plank over the water|built a small "
        "house of reeds]."
    ),
    "The {animal} [bowed|nodded] and [went on its way|was happy again].",
    "[Weeks|Days] later a [rope|belt] slipped off the wheel, and nobody could reach it.",
    "But the {animal} [swam|crept|climbed] into the dark and brought it back.",
    '"[Now we are even|One good turn deserves another]," it said.',
)


def fill(rng: random.Random, template: str, cast: Mapping[str, str] | None = None) -> str:
    """The template with each choice made and each name filled in.

    >>> fill(random.Random(0), "The [mill] of {hero}.", {"hero": "Ada"})
    'The mill of Ada.'
    """
    chosen = CHOICE.sub(lambda match: rng.choice(match[1].split("|")), template)
    return ARTICLE.sub(r"\1n ", chosen.format_map(cast) if cast and "{" in chosen else chosen)


def heroes(split: Split) -> list[str]:
    """The names that have at least one place in the split, so that a story may be asked for by name."""
    return [
        name
        for name, _ in HEROES
        if any(is_held_out("cast", name, place) == (split is Split.HELD_OUT) for place in PLACES)
    ]


def make_cast(rng: random.Random, split: Split, topic: str, hero: str | None = None) -> dict[str, str]:
    """Who and where. The pair (hero, place) decides whether a story is held out; a given hero keeps its name."""

    def propose(rng: random.Random) -> tuple[str, ...]:
        return (hero or rng.choice(HEROES)[0], rng.choice(PLACES))

    name, place = draw(rng, split, "cast", propose)
    they, them, their = PRONOUNS[dict(HEROES).get(name, "she")]
    animal = topic if topic in ANIMALS else rng.choice(ANIMALS)
    friend = rng.choice([other for other, _ in HEROES if other != name])
    friend = rng.choice((f"the {rng.choice(TRADES)} {friend}", f"{friend} from next door", friend, friend))
    return {
        "hero": name, "place": place, "they": they, "them": them, "their": their, "they_c": they.capitalize(),
        "trade": rng.choice(TRADES), "friend": friend,
        "animal": animal, "an_animal": ("an " if animal[0] in "aeiou" else "a ") + animal,
        "lesson": rng.choice(LESSONS), "sound": rng.choice(SOUNDS),
    }  # fmt: skip


def story(rng: random.Random, split: Split, topic: str | None = None, hero: str | None = None) -> str:
    """One short story of six to ten sentences, about the topic if one is given."""
    topic = topic or rng.choice(TOPICS)
    cast = make_cast(rng, split, topic, hero)
    plot = ANIMAL_PLOT if topic in ANIMALS else PLOTS[topic]
    lines = [rng.choice(OPENINGS), *plot, rng.choice(ENDINGS)]
    return " ".join(fill(rng, line, cast) for line in lines)


def long_story(rng: random.Random, split: Split, chapters: int) -> str:
    """A story in chapters that share their hero; about 130 tokens each."""
    parts = []
    hero = make_cast(rng, split, rng.choice(TOPICS))["hero"]
    for number in range(1, chapters + 1):
        topic = rng.choice(TOPICS)
        parts.append(f"Chapter {number}: The {topic}\n{story(rng, split, topic, hero)}")
    return "\n\n".join(parts)


def sentences(rng: random.Random, split: Split, at_least: int) -> list[str]:
    """Story sentences to stand between a fact and its question: at least so many."""
    out: list[str] = []
    while len(out) < at_least:
        out += [part.strip() + "." for part in story(rng, split).split(". ")]
    return [part.replace("..", ".") for part in out[:at_least]]

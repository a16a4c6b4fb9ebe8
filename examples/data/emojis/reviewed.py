# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What no rule tells of emoji names: a short list, reviewed by eye."""

from __future__ import annotations

from collections.abc import Mapping


def _lines(text: str) -> frozenset[str]:
    return frozenset(line.strip() for line in text.split("|"))


# Labels that are no noun phrase, or that say less than they should.
REWRITTEN: Mapping[str, str] = {
    "rolling on the floor laughing": "face rolling on the floor laughing",
    "star-struck": "star-struck face",
    "dizzy": "dizzy star",
    "dashing away": "puff of wind",
    "ZZZ": "sleeping sign",
    "hundred points": "hundred points sign",
    "index pointing up": "finger pointing up",
    "index pointing at the viewer": "finger pointing at the viewer",
    "backhand index pointing left": "hand pointing left",
    "backhand index pointing right": "hand pointing right",
    "backhand index pointing up": "hand pointing up",
    "backhand index pointing down": "hand pointing down",
    "hand with fingers splayed": "hand with splayed fingers",
    "hand with index finger and thumb crossed": "hand with crossed index finger and thumb",
    "woman and man holding hands": "woman and a man holding hands",
    "vulcan salute": "Vulcan salute",
    "thumbs up": "thumb up",
    "thumbs down": "thumb down",
    "breast-feeding": "breast-feeding woman",
    "horse racing": "horse race",
    "cooking": "egg in a frying pan",
    "mate": "mate drink",
    "bottle with popping cork": "bottle with a popping cork",
    "fork and knife with plate": "plate with fork and knife",
    "beach with umbrella": "beach with an umbrella",
    "foggy": "foggy city",
    "camping": "camp site",
    "construction": "construction barrier",
    "building construction": "building site",
    "mount fuji": "Mount Fuji",
    "hindu temple": "Hindu temple",
    "shinto shrine": "Shinto shrine",
    "tanabata tree": "Tanabata tree",
    "Tokyo tower": "Tokyo Tower",
    "kaaba": "Kaaba",
    "milky way": "Milky Way",
    "american football": "American football",
    "performing arts": "pair of theatre masks",
    "headphone": "headphones",
    "dvd": "DVD",
    "dna": "DNA helix",
    "x-ray": "X-ray picture",
    "money with wings": "banknote with wings",
    "locked": "closed padlock",
    "unlocked": "open padlock",
    "locked with pen": "padlock with a pen",
    "locked with key": "padlock with a key",
    "wood": "log of wood",
    "om": "om sign",
    "multiply": "multiplication sign",
    "plus": "plus sign",
    "minus": "minus sign",
    "divide": "division sign",
    "infinity": "infinity sign",
    "copyright": "copyright sign",
    "registered": "registered sign",
    "trade mark": "trade mark sign",
    "information": "information sign",
    "wireless": "wireless sign",
    "litter in bin sign": "litter bin sign",
    "cinema": "cinema sign",
    "vibration mode": "vibration mode sign",
    "mobile phone off": "mobile phone turned off",
    "antenna bars": "antenna bars sign",
    "currency exchange": "currency exchange sign",
    "place of worship": "place of worship sign",
    "latin cross": "Latin cross",
    "orthodox cross": "Orthodox cross",
    "input latin uppercase": "capital letters sign",
    "input latin lowercase": "small letters sign",
    "input numbers": "numbers sign",
    "input symbols": "symbols sign",
    "input latin letters": "letters sign",
    "potable water": "drinking water sign",
    "non-potable water": "no drinking water sign",
    "high voltage": "lightning bolt",
    "ON! arrow": "ON arrow",
    "UP! button": "UP button",
    "water closet": "water closet sign",
    "speaker low volume": "speaker at low volume",
    "speaker medium volume": "speaker at medium volume",
    "speaker high volume": "speaker at high volume",
    "hourglass done": "hourglass",
    "hourglass not done": "running hourglass",
    "pool 8 ball": "billiard ball",
    "fish cake with swirl": "fish cake with a swirl",
    "face savoring food": "face savouring food",
    "french fries": "French fries",
    "mahjong red dragon": "mahjong tile",
    "video game": "game controller",
    "globe showing Europe-Africa": "globe showing Europe and Africa",
    "globe showing Americas": "globe showing the Americas",
    "globe showing Asia-Australia": "globe showing Asia and Australia",
}

# No article and never counted: what is poured, cut or played.
MASS = _lines(
    "bread|baguette bread|bacon|popcorn|butter|salt|broccoli|garlic|spaghetti|sushi|sake|ice|"
    "mate drink|shaved ice|cooked rice|curry rice|canned food|fondue|oden|custard|candy|falafel|"
    "pouring liquid|bubble tea|fried shrimp|meat on bone|ginger root|tennis|bowling|field hockey|"
    "ice hockey|lacrosse|ping pong|badminton|cricket game|fog|fire|coral|seaweed|soap|"
    "thread|yarn|nail polish|hot springs|sheaf of rice|"
    "dango|luggage"
)

# The only one of their kind: with an article that says so, and never counted.
UNIQUE = _lines("Statue of Liberty|Tokyo Tower|Kaaba|Milky Way")
PROPER = _lines("Mount Fuji|Santa Claus|Mrs Claus|Mx Claus|hamsa")

# Pairs, which are counted as such.
PAIRS = _lines(
    "glasses|sunglasses|goggles|jeans|shorts|briefs|scissors|gloves|socks|headphones|skis|"
    "chopsticks|ballet shoes|maracas"
)

# Plurals in their last word, or in that before a preposition, that no library sees; and the other
# way round.
PLURAL = _lines("people|men|women|French fries|woman's clothes|hot springs")
SINGULAR = _lines("moose|deer|rhinoceros|chess")

# Nouns of groups that may stand in scenes, but not these: they fill the picture, are many already,
# or would read badly when counted.
NOT_IN_SCENES = _lines(
    "sunrise|sunset|sunrise over mountains|cityscape|cityscape at dusk|night with stars|"
    "bridge at night|foggy city|desert|beach with an umbrella|national park|landslide|camp site|"
    "building site|moon viewing ceremony|wedding|leaf fluttering in wind|paw prints|"
    "carp streamer|performing arts|pair of theatre masks|horse race|puff of wind|hole|"
    "woman's clothes|egg in a frying pan|skull and crossbones|log of wood|"
    "heart exclamation|empty nest|wing|level slider|film frames|control knobs|"
    "umbrella on ground|military medal|turkey|water closet sign|"
    "sun behind a cloud|sun behind a small cloud|sun behind a large cloud|sun behind a rain cloud|"
    "cloud with lightning and rain|joker|flower playing cards|world map|map of Japan|"
    "identification card|placard|playground slide|railway track|motorway|hammer and pick|"
    "hammer and wrench|bow and arrow|nut and bolt|couch and lamp|microbe|hair pick|"
    "chart increasing|chart decreasing|chart increasing with yen|page facing up|page with a curl|"
    "new moon|volcano|mountain railway|love hotel|fight cloud|collision|sweat droplets"
)

# Nouns of which WordNet's most frequent sense of the kind is not what the emoji shows.
NOT_MEANT = _lines(
    "ghost|alien|hole|merman|family|black cat|peacock|phoenix|dolphin|rosette|crown|notebook|hut|"
    "fire|ribbon|hammer|pick|link|hook|pill|toilet|ice|spaghetti|chestnut|cityscape|joystick|headstone|"
    "lotus|peach|person|lime|coconut|lollipop|card index"
)

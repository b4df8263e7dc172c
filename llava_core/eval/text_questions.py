"""Two hundred questions without a picture, each with a word that a right answer holds: what a model must not forget."""

from __future__ import annotations

_CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon",
    "Greece": "Athens",
    "Japan": "Tokyo", "China": "Beijing", "Russia": "Moscow", "Egypt": "Cairo", "Norway": "Oslo", "Sweden": "Stockholm",
    "Denmark": "Copenhagen", "Finland": "Helsinki", "Poland": "Warsaw", "Austria": "Vienna", "Hungary": "Budapest",
    "Ireland": "Dublin", "Belgium": "Brussels", "Netherlands": "Amsterdam", "Turkey": "Ankara", "Iran": "Tehran",
    "Iraq": "Baghdad", "India": "Delhi", "Thailand": "Bangkok", "Vietnam": "Hanoi", "South Korea": "Seoul",
    "Cuba": "Havana", "Mexico": "Mexico City", "Peru": "Lima", "Chile": "Santiago", "Argentina": "Buenos Aires",
    "Canada": "Ottawa", "Kenya": "Nairobi", "Australia": "Canberra", "Ukraine": "Kyiv", "Romania": "Bucharest",
    "Bulgaria": "Sofia", "the United Kingdom": "London", "the United States": "Washington",
}  # fmt: skip
_OPPOSITES = {
    "hot": "cold", "big": "small", "up": "down", "left": "right", "day": "night", "black": "white", "fast": "slow",
    "happy": "sad", "rich": "poor", "old": "young", "open": "closed", "long": "short", "light": "dark", "wet": "dry",
    "full": "empty", "early": "late", "hard": "soft", "high": "low", "strong": "weak", "good": "bad", "true": "false",
    "inside": "outside", "first": "last", "north": "south", "east": "west", "love": "hate", "win": "lose",
    "buy": "sell", "push": "pull", "begin": "end", "loud": "quiet", "clean": "dirty", "near": "far", "thick": "thin",
    "wide": "narrow", "sweet": "sour", "always": "never", "alive": "dead", "friend": "enemy", "war": "peace",
}  # fmt: skip
_AFTER = {
    "Monday": "Tuesday", "Tuesday": "Wednesday", "Wednesday": "Thursday", "Thursday": "Friday", "Friday": "Saturday",
    "Saturday": "Sunday", "Sunday": "Monday", "January": "February", "February": "March", "March": "April",
    "April": "May", "May": "June", "June": "July", "July": "August", "August": "September", "September": "October",
    "October": "November", "November": "December", "spring": "summer", "summer": "autumn",
}  # fmt: skip
_COLOURS = {
    "a ripe banana": "yellow", "grass": "green", "the sky on a clear day": "blue", "snow": "white", "coal": "black",
    "blood": "red", "a ripe tomato": "red", "a lemon": "yellow", "an emerald": "green", "a ruby": "red",
    "chocolate": "brown", "milk": "white", "a carrot": "orange", "a sapphire": "blue", "a fire truck": "red",
    "a frog": "green", "an orange": "orange", "salt": "white", "a polar bear": "white", "a crow": "black",
}  # fmt: skip
_FACTS = {
    "How many days are there in a week?": "seven|7", "How many months are there in a year?": "twelve|12",
    "How many legs does a spider have?": "eight|8", "How many legs does a dog have?": "four|4",
    "How many hours are there in a day?": "24|twenty-four", "How many minutes are there in an hour?": "60|sixty",
    "How many wheels does a bicycle have?": "two|2", "How many sides does a triangle have?": "three|3",
    "How many sides does a square have?": "four|4", "How many letters are in the English alphabet?": "26",
    "What is the largest planet in the solar system?": "jupiter", "Which planet is closest to the sun?": "mercury",
    "What is the largest ocean?": "pacific", "What is the tallest mountain on Earth?": "everest",
    "What is the chemical formula of water?": "h2o|h₂o", "At how many degrees Celsius does water boil?": "100",
    "Who wrote Romeo and Juliet?": "shakespeare", "Who painted the Mona Lisa?": "leonardo|vinci",
    "What do bees make?": "honey", "What do cows give us to drink?": "milk", "What is frozen water called?": "ice",
    "What is a baby cat called?": "kitten", "What is a baby dog called?": "puppy",
    "What do we call a doctor for teeth?":
    "dentist", "Which animal is known as the king of the jungle?": "lion",
    "What is the fastest land animal?": "cheetah",
    "What is the largest animal on Earth?": "whale", "What star does the Earth go around?": "sun",
    "What is the opposite direction of clockwise?": "counter|anti", "Which language is spoken in Brazil?": "portuguese",
    "What currency is used in Japan?": "yen", "What gas do plants take in from the air?": "carbon dioxide|co2",
    "What gas do people need to breathe?": "oxygen", "Who was the first president of the United States?": "washington",
    "On which continent is Egypt?": "africa", "On which continent is Brazil?": "america", "What is H2O?": "water",
    "On which continent is China?": "asia", "On which continent is France?": "europe",
    "Which organ pumps blood?": "heart",
}  # fmt: skip


def text_questions() -> list[tuple[str, str]]:
    """Question, and accepted words between bars."""
    found = [(f"What is the capital of {country}?", city) for country, city in _CAPITALS.items()]
    found += [(f'What is the opposite of "{word}"?', other) for word, other in _OPPOSITES.items()]
    found += [(f"What comes right after {word}?", other) for word, other in _AFTER.items()]
    found += [(f"What color is {what}?", colour) for what, colour in _COLOURS.items()]
    found += [
        (f"What is {left} plus {right}?", str(left + right)) for left in range(1, 9) for right in (1, 2, 3, 5, 10)
    ]
    found += list(_FACTS.items())
    assert len(found) == 200
    return found

"""Requests without a picture. The language model answers them before its training, and learns to do so still."""

from __future__ import annotations

_EXPLAIN = (
    "gravity", "photosynthesis", "a rainbow", "electricity", "the moon", "a computer", "a volcano", "the internet",
    "an earthquake", "a library", "recycling", "a telescope", "a bridge", "money", "music", "a compass", "a battery",
    "a desert", "a forest", "democracy", "a magnet", "a microscope", "the water cycle", "a calendar", "bread",
)  # fmt: skip
_LIST = (
    "fruits", "vegetables", "animals that live in the sea", "musical instruments", "things in a kitchen", "sports",
    "birds", "tools", "countries in Europe", "things to pack for a trip", "hobbies", "kinds of weather", "trees",
    "drinks",
)  # fmt: skip
_WRITE = (
    "a friendly greeting", "a short thank-you note", "a sentence about autumn", "a sentence with the word bicycle",
    "a slogan for a bakery", "a title for a story about a lost dog", "an apology for being late", "a birthday wish",
    "a sentence about the ocean", "a question to ask a teacher", "a line of a poem about stars", "a good-night message",
)  # fmt: skip
_ASK = (
    "Hello!", "Who are you?", "How are you today?", "What can you do?", "Thank you!", "Can you help me?",
    "Good morning!",
    "What is the capital of Brazil?", "What is the capital of Switzerland?", "What is the capital of Morocco?",
    "What is the opposite of cheap?", "What is the opposite of brave?", "What is the opposite of heavy?",
    "What is 4 times 6?", "What is 15 minus 7?", "What is half of 18?", "What is 9 plus 9?", "What is 12 plus 4?",
    "How many days are there in April?", "How many seconds are there in a minute?", "How many legs does an ant have?",
    "What color is a strawberry?", "What color is a sunflower?", "What color is the ocean?",
    "What is a baby cow called?",
    "Which planet do we live on?", "Which animal has a trunk?", "What do birds lay?", "Where do fish live?",
    "What is the largest country in the world?", "What is the longest river in Africa?", "Who invented the telephone?",
    "Who wrote Harry Potter?", "What language do people speak in Mexico?",
    "What do you call a person who flies a plane?",
    "Translate to Spanish: good morning.", "Translate to French: thank you.", "Is the sun a star?",
    "Is a whale a fish?",
    "Can penguins fly?", "Do plants need light?", "Is ice colder than steam?", "Is 7 larger than 3?",
    "Is a tomato a fruit?",
    "Spell the word cat.", "What is the first letter of the alphabet?", "Which season comes before winter?",
    "What comes after ten?", "Which month comes first in the year?", "What do we use an umbrella for?",
    "What is a synonym of happy?", "What is a synonym of quick?", "Why do we sleep?", "Why is the sky blue?",
    "Give me a tip for studying.", "Give me a tip for saving water.", "What should I cook tonight?",
    "How do I boil an egg?", "How do I make tea?", "How can I learn a language?", "What is a healthy breakfast?",
    "Tell me a joke.", "Tell me a fun fact.", "Say something nice.", "What is the meaning of courage?",
)  # fmt: skip


def instructions() -> list[str]:
    found = [f"Explain {what} in one sentence." for what in _EXPLAIN]
    found += [f"Name three {what}." for what in _LIST]
    found += [f"Write {what}." for what in _WRITE]
    return [*found, *_ASK]

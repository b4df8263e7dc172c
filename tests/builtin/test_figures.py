"""How answers are judged, and that the questions without a picture are what they claim to be."""

import pytest

from llava_core.builtin.data.instructions import instructions
from llava_core.eval.questions import is_right
from llava_core.eval.text_questions import text_questions


@pytest.mark.parametrize(
    ("skill", "answer", "key", "right"),
    [
        ("color", "The circle is red.", "red", True),
        ("color", "The circle is reddish.", "red", False),
        ("position", "It is at the top left.", "the top left", True),
        ("position", "It is at the top right.", "the top left", False),
        ("count", "There are three stars.", "three", True),
        ("chart", "The value of bar A is 10.", "1", False),
        ("yes/no", "Yes, there is a cat.", "yes", True),
        ("yes/no", "I say yes.", "yes", False),
        ("photo yes/no", "No, it shows a dog.", "no", True),
        ("reading", 'It says "H O U S E".', "H O U S E", True),
        ("reading", "house", "H O U S E", True),
        ("reading", 'It says "H O U S".', "H O U S E", False),
        ("describe", "There are two shapes: a red bar and a red bar.", "red bar|red bar", True),
        ("describe", "There are two shapes: a red bar and a blue bar.", "red bar|red bar", False),
        ("describe", "There is a red star.", "red star|blue ring", False),
        ("text", "The capital of Mexico is Mexico City.", "Mexico City", True),
    ],
)
def test_an_answer_is_right_when_it_holds_the_key_as_whole_words(
    skill: str, answer: str, key: str, right: bool
) -> None:
    assert is_right(skill, answer, key) is right


def test_no_question_of_the_text_test_is_trained_on() -> None:
    asked = [question for question, _ in text_questions()]
    assert len(set(asked)) == 200
    assert not set(asked) & set(instructions())

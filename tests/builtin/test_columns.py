"""The tower's table: what is found is laid out as one reads, and nothing else is in it."""

import torch

from llava_core.builtin.columns import COLOURS, COUNTS, KINDS, LETTERS, SHAPES, Columns

COLUMNS = Columns(names=5)
EMPTY = -8.0


def described(pictures: int = 1) -> dict[str, torch.Tensor]:
    return {
        "classes": torch.zeros(pictures, 1000),
        "region_classes": torch.zeros(pictures, 1000, 3, 3),
        "names": torch.zeros(pictures, 5),
        "small_photo": torch.zeros(pictures, 10),
        "kinds": torch.zeros(pictures, 6),
        "cell_names": torch.zeros(pictures, 5, 7, 7),
    }


def maps() -> dict[str, torch.Tensor]:
    objects = torch.zeros(1, Columns.OBJECT_MAPS, 18, 18)
    letters = torch.zeros(1, Columns.LETTER_MAPS, 36, 36)
    objects[:, 0] = letters[:, 0] = EMPTY
    return {"objects": objects, "letters": letters}


def put(found: dict[str, torch.Tensor], x: int, y: int, colour: str, shape: str) -> None:
    found["objects"][0, 0, y, x] = 5
    found["objects"][0, 1 + COLOURS.index(colour), y, x] = 20
    found["objects"][0, 1 + len(COLOURS) + SHAPES.index(shape), y, x] = 20


def write(found: dict[str, torch.Tensor], x: int, y: int, letter: str) -> None:
    found["letters"][0, 0, y, x] = 5
    found["letters"][0, 1 + LETTERS.index(letter), y, x] = 20


def test_objects_come_from_left_to_right_with_colour_shape_and_place() -> None:
    found = maps()
    put(found, 15, 2, "blue", "star")
    put(found, 3, 9, "red", "circle")
    table = COLUMNS.lay_out(described(), found)
    assert table.shape == (1, 36, COLUMNS.total)
    objects = table[0, 11:20]
    assert objects[:, 3].tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 0]
    said = [
        (COLOURS[row[COLUMNS.place("colour")].argmax()], SHAPES[row[COLUMNS.place("shape")].argmax()])
        for row in objects[:2]
    ]
    assert said == [("red", "circle"), ("blue", "star")]
    assert objects[0, COLUMNS.place("side")].tolist() == [1, 0, 0]
    assert objects[0, COLUMNS.place("row")].tolist() == [0, 1, 0]
    assert objects[1, COLUMNS.place("side")].tolist() == [0, 0, 1]


def test_the_sums_say_how_many_objects_there_are() -> None:
    found = maps()
    for x in (2, 7, 12):
        put(found, x, 5, "green", "square")
    sums = COLUMNS.lay_out(described(), found)[0, 1]
    assert COUNTS[sums[COLUMNS.place("count")].argmax()] == "three"


def test_letters_are_read_line_by_line() -> None:
    found = maps()
    for x, y, letter in ((20, 8, "T"), (5, 9, "C"), (12, 8, "A"), (4, 20, "D"), (9, 20, "O")):
        write(found, x, y, letter)
    letters = COLUMNS.lay_out(described(), found)[0, 20:]
    read = [LETTERS[row[COLUMNS.place("letter")].argmax()] for row in letters if row[4] == 1]
    assert "".join(read) == "CATDO"


def test_one_peak_is_one_object_however_broad() -> None:
    found = maps()
    put(found, 8, 8, "red", "circle")
    found["objects"][0, 0, 8, 9] = 3
    found["objects"][0, 0, 7, 8] = 2
    assert COLUMNS.lay_out(described(), found)[0, 11:20, 3].sum() == 1


def test_the_groups_cover_every_column_once() -> None:
    covered = torch.zeros(COLUMNS.total)
    for group, _ in COLUMNS.groups():
        covered[COLUMNS.place(group)] += 1
    assert covered.tolist() == [1] * COLUMNS.total


def test_the_likeliest_name_is_said_aloud_even_where_none_is_likely() -> None:
    seen = described()
    seen["kinds"][0, KINDS.index("drawing")] = 20
    seen["names"][0] = torch.tensor([0.1, 0.2, 1.0, 0.0, 0.3])
    name = COLUMNS.lay_out(seen, maps())[0, 0, COLUMNS.place("name")]
    assert name.argmax() == 2
    assert name[2] > 0.9


def test_a_sure_class_makes_a_photograph_of_what_could_be_any_kind() -> None:
    seen = described()
    seen["kinds"][0] = torch.tensor([-0.4, -0.5, -1.2, -1.7, -1.9, -0.6])
    seen["classes"][0, 285] = 12
    whole = COLUMNS.lay_out(seen, maps())[0, 0]
    assert whole[COLUMNS.place("kind")][KINDS.index("photo")] > 0.9
    assert whole[COLUMNS.place("class")].argmax() == 285
    assert whole[COLUMNS.place("class")].max() > 0.8


def test_what_is_plainly_a_drawing_stays_one_however_sure_its_class() -> None:
    seen = described()
    seen["kinds"][0, KINDS.index("drawing")] = 4.5
    seen["classes"][0, 954] = 12
    seen["names"][0, 3] = 1
    whole = COLUMNS.lay_out(seen, maps())[0, 0]
    assert whole[COLUMNS.place("kind")][KINDS.index("drawing")] > 0.9
    assert whole[COLUMNS.place("name")].max() > 0.8
    assert whole[COLUMNS.place("class")].max() < 0.1

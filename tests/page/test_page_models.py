"""The list behind the picker: fresh, shared, and calm when the controller is away."""

from __future__ import annotations

from llava_core.engines.echo import EchoEngine
from llava_core.errors import NoWorker
from serve.page.models import ModelList
from serve.protocol import ModelCard
from tests.page.sources import EchoSource


class Counting(EchoSource):
    def __init__(self, *engines: EchoEngine) -> None:
        super().__init__(*engines)
        self.asked = 0
        self.away = False

    async def models(self) -> tuple[ModelCard, ...]:
        self.asked += 1
        if self.away:
            raise NoWorker("the controller cannot be reached")
        return await super().models()


def names(offer: object) -> list[str]:
    return [card.info.name for card in getattr(offer, "cards")]  # noqa: B009


async def test_many_pages_make_one_question_to_the_controller() -> None:
    source, now = Counting(EchoEngine("b"), EchoEngine("a")), [0.0]
    models = ModelList(source, clock=lambda: now[0])
    for _ in range(50):
        assert names(await models.offer()) == ["a", "b"]
    assert source.asked == 1


async def test_a_model_that_appears_later_is_listed() -> None:
    source, now = Counting(EchoEngine("a")), [0.0]
    models = ModelList(source, clock=lambda: now[0])
    await models.offer()
    source.engines["new"] = EchoEngine("new")
    now[0] = 1.5
    assert names(await models.offer()) == ["a", "new"]


async def test_the_list_stays_while_the_controller_is_away_and_says_so() -> None:
    source, now = Counting(EchoEngine("a")), [0.0]
    models = ModelList(source, clock=lambda: now[0])
    await models.offer()
    source.away, now[0] = True, 2.0
    offer = await models.offer()
    assert names(offer) == ["a"]
    assert "cannot be reached" in offer.trouble
    source.away, now[0] = False, 4.0
    assert (await models.offer()).trouble == ""


async def test_once_keeps_the_first_list_that_has_a_model_in_it() -> None:
    source, now = Counting(), [0.0]
    models = ModelList(source, "once", clock=lambda: now[0])
    assert names(await models.offer()) == []
    source.engines["a"] = EchoEngine("a")
    now[0] = 2.0
    assert names(await models.offer()) == ["a"]
    source.engines["b"] = EchoEngine("b")
    now[0] = 100.0
    assert names(await models.offer()) == ["a"]

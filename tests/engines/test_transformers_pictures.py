"""Pictures that come again with every turn are prepared once, for their owner."""

from __future__ import annotations

import pytest
from exactness import load
from PIL import Image

from llava_core.checkpoints.base import PreparedImage
from llava_core.config import ImageLimits
from llava_core.engines.transformers.pictures import Pictures
from llava_core.images import ImageLoader
from llava_core.types import user
from tests.engines.contenders import picture


@pytest.mark.parametrize("share", [False, True])
async def test_a_picture_that_another_owner_sent_is_prepared_again_unless_owners_share(share: bool) -> None:
    loaded = load("llava")
    pictures = Pictures(ImageLoader(ImageLimits()), 2**20, share_between_owners=share)
    try:
        sent = [picture()]
        first = await pictures.take(sent, "ann")
        pictures.keep(first, [loaded.prompt((user(*sent),), first.pictures).images[0].image])
        for owner, known in (("ann", True), ("bob", share), ("", share), ("an", share)):
            (found,) = (await pictures.take(sent, owner)).pictures
            assert isinstance(found, PreparedImage) == known
    finally:
        await pictures.aclose()


def test_pictures_of_the_same_bytes_in_another_shape_are_others() -> None:
    loaded = load("llava")
    pixels = bytes(range(256)) * 36
    shapes = [(64, 48), (48, 64), (96, 32), (32, 96), (3072, 1)]
    keys = {
        loaded.prompt((user(picture()),), [Image.frombytes("RGB", shape, pixels)]).images[0].image.key
        for shape in shapes
    }
    assert len(keys) == len(shapes)

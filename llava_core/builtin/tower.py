"""The built-in model's eye: EfficientNet-Lite2 with a small finder on top, known to transformers' Auto classes.

Its output is a row of 36 feature vectors, laid out as one table of named columns (see `Columns`): the whole picture,
its sums, nine regions, up to nine objects and up to sixteen letters, each sorted as one reads.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from llava_core.builtin.columns import Columns

# Expansion, channels, repeats, stride, kernel of EfficientNet-Lite2's stages.
_STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 3, 2, 3),
    (6, 48, 3, 2, 5),
    (6, 88, 4, 2, 3),
    (6, 120, 4, 1, 5),
    (6, 208, 5, 2, 5),
    (6, 352, 1, 1, 3),
)
_FEATURES = 1280


class SeeingConfig(PretrainedConfig):
    """Sizes of the tower. `hidden_size` follows from the columns, `patch_size` from 36 rows as a grid of six by six."""

    model_type = "llava_seeing_tower"

    def __init__(
        self,
        image_size: int = 288,
        patch_size: int = 48,
        hidden_size: int = 0,
        names: int = 0,
        width: int = 128,
        trunk_size: int = 224,
        **rest: Any,
    ) -> None:
        self.image_size, self.patch_size, self.names, self.width = image_size, patch_size, names, width
        self.trunk_size = trunk_size
        self.hidden_size = hidden_size or Columns(names).total
        self.num_channels = 3
        super().__init__(**rest)


class SeeingTower(PreTrainedModel):
    """Pixels to named features. Pixels come as `(x - 127) / 128`."""

    config_class = SeeingConfig
    base_model_prefix = "seeing"
    main_input_name = "pixel_values"
    _no_split_modules = {"_Block"}  # noqa: RUF012  transformers' own way
    # It has no attention, so that any kind suits it.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, config: SeeingConfig) -> None:
        super().__init__(config)
        self.columns = Columns(config.names)
        self.trunk = Trunk()
        self.classes = nn.Conv2d(_FEATURES, self.columns.CLASSES, 1)
        self.naming = Naming(config.names)
        self.finder = Finder(config.width)
        self.post_init()

    def forward(
        self, pixel_values: torch.Tensor, output_hidden_states: bool | None = None, **_: Any
    ) -> BaseModelOutput:
        """(pictures, 3, 288, 288) -> (pictures, 36, hidden_size)"""
        out = self.columns.lay_out(self.describe(self.features(pixel_values)), self.finder(pixel_values))
        return BaseModelOutput(last_hidden_state=out, hidden_states=(out,) if output_hidden_states else None)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """The trunk's last feature map, from a smaller picture: (pictures, 1280, 7, 7)"""
        side = self.config.trunk_size
        # Not every device smooths in half precision.
        small = F.interpolate(pixels.float(), (side, side), mode="bilinear", antialias=True, align_corners=False)
        return self.trunk(small.to(pixels.dtype))

    def describe(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        """Class and name scores of the whole picture and, cell by cell, of the last feature map."""
        # (pictures, 1280, 9, 9) -> (pictures, 1280, 1, 1)
        whole = features.mean((2, 3), keepdim=True)
        regions = F.adaptive_avg_pool2d(features, 3)
        near = F.avg_pool2d(F.pad(features, (1, 1, 1, 1), mode="replicate"), 3, 1)
        return {
            "classes": self.classes(whole).flatten(1),
            "region_classes": self.classes(regions),
            "names": self.naming(whole)[0].flatten(1),
            "small_photo": self.naming(whole)[1].flatten(1),
            "kinds": self.naming(whole)[2].flatten(1),
            "cell_names": self.naming(near)[0],
        }

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class Naming(nn.Module):
    """What a feature is called: names of drawn things, classes of small photographs, kinds of picture."""

    def __init__(self, names: int) -> None:
        super().__init__()
        self.names = nn.Conv2d(_FEATURES, names, 1)
        self.small_photo = nn.Conv2d(_FEATURES, Columns.SMALL_PHOTO, 1)
        self.kinds = nn.Conv2d(_FEATURES, Columns.KINDS, 1)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        # The features' lengths differ more between pictures than between things.
        unit = F.normalize(features, dim=1) * 16
        return self.names(unit), self.small_photo(unit), self.kinds(unit)


class Finder(nn.Module):
    """Where objects and letters have their centres, and what is there: maps at stride 16 and stride 8.

    It looks at the pixels itself: plain colour and fine lines are what a classifier's features keep least of.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        thin, middle = width // 4, width // 2 + width // 4
        self.enter = nn.Conv2d(48, thin, 3, padding=1)
        self.at_4 = _Look(thin)
        self.to_8 = nn.Conv2d(thin, middle, 3, stride=2, padding=1)
        self.at_8 = nn.Sequential(_Look(middle), _Look(middle))
        self.to_16 = nn.Conv2d(middle, width, 3, stride=2, padding=1)
        self.at_16 = nn.Sequential(_Look(width), _Look(width), _Around(width), _Look(width))
        self.objects = nn.Conv2d(width, Columns.OBJECT_MAPS, 1)
        self.back_to_8 = nn.Conv2d(width, middle, 1)
        self.letter_look = _Look(middle)
        self.letters = nn.Conv2d(middle, Columns.LETTER_MAPS, 1)

    def start(self) -> None:
        """Weights to learn from: each look starts as no change, and every cell as empty."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        for module in self.modules():
            if isinstance(module, _Look | _Around):
                nn.init.zeros_((module.second if isinstance(module, _Look) else module.mix).weight)
        for head in (self.objects, self.letters):
            nn.init.normal_(head.weight, std=0.01)
            nn.init.constant_(head.bias[:1], -3.0)  # type: ignore[index]

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        # (pictures, 3, 288, 288) -> (pictures, 32, 72, 72) -> (pictures, 96, 36, 36) -> (pictures, 128, 18, 18)
        fine = self.at_8(F.relu(self.to_8(self.at_4(F.relu(self.enter(F.pixel_unshuffle(pixels, 4)))))))
        coarse = self.at_16(F.relu(self.to_16(fine)))
        fine = fine + F.interpolate(self.back_to_8(coarse), scale_factor=2.0, mode="nearest")
        return {"objects": self.objects(coarse), "letters": self.letters(self.letter_look(fine))}


class Trunk(nn.Module):
    """EfficientNet-Lite2 with its batch norms folded into the convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _Conv(3, 32, 3, 2)
        blocks: list[nn.Module] = []
        channels = 32
        for expansion, out, repeats, stride, kernel in _STAGES:
            for repeat in range(repeats):
                blocks.append(_Block(channels, out, expansion, kernel, stride if repeat == 0 else 1))
                channels = out
        self.blocks = nn.ModuleList(blocks)
        self.head = _Conv(channels, _FEATURES, 1, 1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """The last feature map, at a stride of 32."""
        x = self.stem(pixels)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class _Conv(nn.Module):
    """A convolution padded as TensorFlow pads ("same"), with ReLU6 unless told otherwise."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1, bent: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups)
        self.bent = bent

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (kernel, _), (stride, _) = self.conv.kernel_size, self.conv.stride
        need = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in (x.shape[3], x.shape[2])]
        if any(need):
            x = F.pad(x, (need[0] // 2, need[0] - need[0] // 2, need[1] // 2, need[1] - need[1] // 2))
        x = self.conv(x)
        return F.relu6(x) if self.bent else x


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = _Conv(inputs, wide, 1, 1) if expansion > 1 else nn.Identity()
        self.depthwise = _Conv(wide, wide, kernel, stride, groups=wide)
        self.project = _Conv(wide, outputs, 1, 1, bent=False)
        self.skips = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.skips else y


class _Look(nn.Module):
    """Two plain convolutions beside what was there."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.second(F.relu(self.first(x))))


class _Around(nn.Module):
    """A look at the whole neighbourhood, and at the picture's mean."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide = nn.Conv2d(width, width, 9, padding=4, groups=width)
        self.whole = nn.Conv2d(width, width, 1)
        self.mix = nn.Conv2d(width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.mix(F.relu(self.wide(x) + self.whole(x.mean((2, 3), keepdim=True)))))


def register_tower() -> None:
    """Make the tower known to transformers, so that configs and models of it load like any other's."""
    AutoConfig.register(SeeingConfig.model_type, SeeingConfig, exist_ok=True)
    AutoModel.register(SeeingConfig, SeeingTower, exist_ok=True)


register_tower()

"""LLaVA as it trains: features may come from a cache, samples stand end to end, and words are scored where they count.

Scoring a vocabulary is much of a small model's work; prompts and pictures need none of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import LlavaForConditionalGeneration, LlavaNextForConditionalGeneration, PreTrainedModel
from transformers.utils.generic import ModelOutput

from llava_core.train.attention import lay_out

SCORED_AT_ONCE = 1024


@dataclass
class Scored(ModelOutput):
    """The mean loss of what was learned (or its sum over `num_items_in_batch`), and how many tokens that were."""

    loss: torch.Tensor | None = None
    taught: torch.Tensor | None = None


class _Training:
    """What both families share. Mixed in before transformers' class, whose modules it uses."""

    accepts_loss_kwargs = True
    model: Any
    lm_head: Any
    config: Any

    def tower_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """(tiles, 3, height, width) -> (tiles, rows, width), what the projector is given."""
        inner = self.model
        weight = next(inner.vision_tower.parameters())
        out = inner.vision_tower(
            pixels.to(weight.device, weight.dtype), output_hidden_states=True, return_dict=True
        ).hidden_states
        layers = self.config.vision_feature_layer
        chosen = [out[layer] for layer in ([layers] if isinstance(layers, int) else layers)]
        if self.config.vision_feature_select_strategy == "default":
            chosen = [hidden[:, 1:] for hidden in chosen]
        return torch.cat(chosen, dim=-1)

    def picture_rows(
        self, features: torch.Tensor, tiles: Sequence[int], sizes: torch.Tensor | None
    ) -> list[torch.Tensor]:
        """Projected rows of each picture from the features of all tiles."""
        inner = self.model
        weight = next(inner.multi_modal_projector.parameters())
        features = features.to(weight.device)
        if not torch.is_autocast_enabled(features.device.type):
            features = features.to(weight.dtype)
        projected = inner.multi_modal_projector(features).split(list(tiles))
        return self.laid_out(projected, sizes)

    def laid_out(self, projected: Sequence[torch.Tensor], sizes: torch.Tensor | None) -> list[torch.Tensor]:
        del sizes
        return [part[0] for part in projected]

    def embed(self, input_ids: torch.Tensor, rows: Sequence[torch.Tensor]) -> torch.Tensor:
        """Words' embeddings with pictures' rows in place."""
        embedded = self.model.get_input_embeddings()(input_ids)
        if not rows:
            return embedded
        here = (input_ids == self.config.image_token_id).unsqueeze(-1)
        return embedded.masked_scatter(here, torch.cat(list(rows)).to(embedded.dtype))

    def forward(
        self,
        input_ids: torch.Tensor,
        shift_labels: torch.Tensor,
        position_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        bounds: torch.Tensor | None = None,
        longest: int = 0,
        features: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        tiles: Sequence[int] = (),
        image_sizes: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Scored:
        """`shift_labels` name the next token at each position, -100 where none is learned."""
        if pixel_values is not None:
            features = self.tower_features(pixel_values)
        rows = self.picture_rows(features, tiles, image_sizes) if features is not None else []
        embedded = self.embed(input_ids, rows)
        packed = {} if bounds is None else {"layout": lay_out(bounds, longest)}
        hidden = self.model.language_model(
            inputs_embeds=embedded,
            position_ids=position_ids,
            attention_mask=attention_mask,
            use_cache=False,
            **packed,
        ).last_hidden_state
        counted = shift_labels != -100
        total = _summed_loss(self.lm_head, hidden[counted], shift_labels[counted], self.config)
        if features is None:
            total = total + _untouched(self.model)
        taught = counted.sum()
        return Scored(
            loss=total / (taught.clamp(min=1) if num_items_in_batch is None else num_items_in_batch), taught=taught
        )


class TrainingLlava(_Training, LlavaForConditionalGeneration):  # pyright: ignore[reportIncompatibleMethodOverride]
    """LLaVA-1.5: one tile a picture."""


class TrainingLlavaNext(_Training, LlavaNextForConditionalGeneration):  # pyright: ignore[reportIncompatibleMethodOverride]
    """LLaVA-1.6: any-res tiles, laid out in rows with a mark at the end of each."""

    def laid_out(self, projected: Sequence[torch.Tensor], sizes: torch.Tensor | None) -> list[torch.Tensor]:
        rows, _ = self.model.pack_image_features(
            list(projected),
            sizes,
            vision_feature_select_strategy=self.config.vision_feature_select_strategy,
            image_newline=self.model.image_newline,
        )
        return rows


TRAINED: dict[str, type[PreTrainedModel]] = {"llava": TrainingLlava, "llava_next": TrainingLlavaNext}


def _summed_loss(head: nn.Module, hidden: torch.Tensor, targets: torch.Tensor, config: Any) -> torch.Tensor:
    """Cross entropy, summed; some positions at a time, since their scores over the vocabulary are large."""
    cap = getattr(config.get_text_config(), "final_logit_softcapping", None)

    def some(states: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        scores = head(states).float()
        if cap:
            scores = cap * torch.tanh(scores / cap)
        return F.cross_entropy(scores, wanted, reduction="sum")

    if len(targets) <= SCORED_AT_ONCE:
        return some(hidden, targets)
    parts = zip(hidden.split(SCORED_AT_ONCE), targets.split(SCORED_AT_ONCE), strict=True)
    found = [checkpoint(some, states, wanted, use_reentrant=False) for states, wanted in parts]
    return torch.stack([part for part in found if part is not None]).sum()


def _untouched(model: Any) -> torch.Tensor:
    """Zero, and yet a use of the projector: replicas wait for gradients of all that learns."""
    learning = [weight for weight in model.multi_modal_projector.parameters() if weight.requires_grad]
    newline = getattr(model, "image_newline", None)
    if newline is not None and newline.requires_grad:
        learning.append(newline)
    zero = torch.zeros((), device=next(model.multi_modal_projector.parameters()).device)
    return zero + sum((weight.sum() * 0 for weight in learning), start=zero)

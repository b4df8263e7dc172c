"""The two stages of LLaVA's recipe: what learns in each, at which rate. Numbers of LLaVA-1.5 (arXiv 2310.03744).

Everything here can be changed by a config file or a flag; see `settings.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Stage = Literal["pretrain", "finetune"]


@dataclass(frozen=True)
class Recipe:
    """What learns at which rate; a part whose rate is 0 is frozen."""

    template: Literal["plain", "chat"]
    """`plain`: the picture, then its caption, no words around (stage 1). `chat`: as the model is served."""
    projector_rate: float
    llm_rate: float
    tower_rate: float
    lora_rate: float
    """With --lora: of the adapters, which then learn in place of the language model."""
    lora_projector_rate: float
    batch_size: int
    epochs: float = 1.0
    warmup: float = 0.03
    schedule: str = "cosine"
    weight_decay: float = 0.0
    lora_rank: int = 128
    lora_alpha: int = 256
    lora_dropout: float = 0.05
    max_length: int = 2048


# LLaVA-1.5's projector learns at 1e-3 (the first LLaVA's, one layer, at 2e-3); 558,000 captioned pictures, one epoch.
PRETRAIN = Recipe(
    template="plain",
    projector_rate=1e-3,
    llm_rate=0.0,
    tower_rate=0.0,
    lora_rate=2e-4,
    lora_projector_rate=1e-3,
    batch_size=256,
)
# 665,000 chats, one epoch. LLaVA-1.6 also tunes the tower, at 2e-6: --tower-rate 2e-6.
FINETUNE = Recipe(
    template="chat",
    projector_rate=2e-5,
    llm_rate=2e-5,
    tower_rate=0.0,
    lora_rate=2e-4,
    lora_projector_rate=2e-5,
    batch_size=128,
)
RECIPES: Mapping[Stage, Recipe] = {"pretrain": PRETRAIN, "finetune": FINETUNE}

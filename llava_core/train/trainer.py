"""transformers' Trainer for a stage: rates by part, order by length, states that hold only what learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llava_core.train.answer import Answered, answer_sample
from llava_core.train.dataset import IGNORED, Collate, Lessons
from llava_core.train.export import load_learned, save_learned
from llava_core.train.learn import learning, parameter_groups
from llava_core.train.sampler import GroupedOrder
from llava_core.train.settings import Settings

Evaluated = Callable[[int, Mapping[str, float], Sequence[Answered]], None]
OPTIMISER = {"betas": (0.9, 0.999), "eps": 1e-8}


class StageTrainer(Trainer):
    """`held_out` are lessons that are only evaluated; `answered` are their indices to be answered, too."""

    def __init__(
        self,
        *,
        settings: Settings,
        order: GroupedOrder,
        collate: Collate,
        held_out: Lessons | None,
        held_out_taken: Sequence[int] = (),
        answered: Sequence[int] = (),
        evaluated: Evaluated | None = None,
        **rest: Any,
    ) -> None:
        self._settings = settings
        self._order = order
        self._collate = collate
        self._held_out = held_out
        self._taken = held_out_taken
        self._answered = answered
        self._evaluated = evaluated
        self.tokens_seen = 0
        super().__init__(data_collator=collate, **rest)
        self.add_callback(_EpochOrder(order))

    @property
    def rates_now(self) -> dict[str, float]:
        if self.optimizer is None:
            return {}
        return {str(group["part"]): float(group["lr"]) for group in self.optimizer.param_groups if "part" in group}

    @property
    def is_sharded(self) -> bool:
        """Whether no process holds the whole model."""
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def _get_train_sampler(self, train_dataset: Any = None) -> GroupedOrder:
        return self._order

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            fused = self.args.device.type in ("cpu", "cuda") and not self.is_sharded
            learner: Any = model or self.model
            groups = parameter_groups(learner, self._settings)
            self.optimizer = torch.optim.AdamW(groups, fused=fused, **OPTIMISER)
        return self.optimizer

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """With the rate of each part, where transformers tells that of the first."""
        rates = {f"rate/{part}": rate for part, rate in self.rates_now.items()} if "loss" in logs else {}
        super().log(logs | rates, start_time)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        self.tokens_seen += inputs["input_ids"].numel() * max(1, self.args.world_size)
        return super().training_step(model, inputs, num_items_in_batch)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """Tokens that are learned in a whole step, over all devices: the loss is their mean, however they are split."""
        if not batch_samples:
            return None
        count = torch.stack([(batch["shift_labels"] != IGNORED).sum() for batch in batch_samples]).sum().to(device)
        gathered: Any = self.accelerator.gather(count) if self.args.world_size > 1 else count
        return gathered.sum()

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Mean loss over the tokens of held-out answers, and some of the answers themselves."""
        if self._held_out is None or not len(self._taken):
            return {}
        model: Any = self.model
        forward: Any = self.model_wrapped if self.is_sharded else model
        model.eval()
        for module in model.modules():
            # On a CPU bitsandbytes packs 4-bit weights at their first use in evaluation, which has no gradient after.
            if type(module).__name__ == "Linear4bit":
                module.train()
        mine = [int(index) for index in self._taken][self.args.process_index :: max(1, self.args.world_size)]
        total = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        batches: Any = DataLoader(
            torch.utils.data.Subset(self._held_out, mine),
            batch_size=self.args.per_device_train_batch_size,
            collate_fn=self._collate,
        )
        with torch.no_grad(), self.accelerator.autocast():
            for batch in batches:
                scored = forward(**self._prepare_inputs(batch))
                total += torch.stack((scored.loss.double() * scored.taught, scored.taught.double()))
        gathered: Any = self.accelerator.reduce(total, "sum")
        answers = self._answers() if self.is_world_process_zero() and not self.is_sharded else []
        figures = {"eval_loss": float(gathered[0] / gathered[1].clamp(min=1))}
        if answers:
            figures["eval_right"] = sum(each.right for each in answers) / len(answers)
        if self._evaluated is not None and self.is_world_process_zero():
            self._evaluated(self.state.global_step, figures, answers)
        self.accelerator.wait_for_everyone()
        model.train()
        self.log(dict(figures))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, figures)
        return figures

    def learned(self) -> dict[str, torch.Tensor] | None:
        """Everything that learned by its name; of the main process, None elsewhere. All processes must call it."""
        names = [name for name, _ in learning(self.accelerator.unwrap_model(self.model))]
        if self.is_sharded:
            whole: Any = self.accelerator.get_state_dict(self.model_wrapped)
            return _chosen(whole, names) if self.is_world_process_zero() else None
        if not self.is_world_process_zero():
            return None
        return _chosen(dict(self.accelerator.unwrap_model(self.model).named_parameters()), names)

    def _answers(self) -> list[Answered]:
        assert self._held_out is not None
        with self.accelerator.autocast():
            return [
                answer_sample(self.model, self._held_out, index, most=self._settings.answer_tokens)
                for index in self._answered
            ]

    def _save(self, output_dir: str | None = None, state_dict: Mapping[str, torch.Tensor] | None = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        model = self.accelerator.unwrap_model(self.model)
        names = [name for name, _ in learning(model)]
        given = dict(model.named_parameters()) if state_dict is None else state_dict
        if self.args.should_save:
            save_learned(_chosen(given, names), folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        learner: Any = model or self.model
        known = dict(learner.named_parameters())
        with torch.no_grad():
            for name, tensor in load_learned(Path(resume_from_checkpoint)).items():
                known[name].copy_(tensor)


class _EpochOrder(TrainerCallback):
    """Tells the order which epoch it is, also after a restart."""

    def __init__(self, order: GroupedOrder) -> None:
        self._order = order

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._order.set_epoch(int(state.epoch or 0))


def _chosen(tensors: Mapping[str, torch.Tensor], names: Sequence[str]) -> dict[str, torch.Tensor]:
    plain = {
        name.replace("_fsdp_wrapped_module.", "").removeprefix("module."): value for name, value in tensors.items()
    }
    wanted = [name.replace("_fsdp_wrapped_module.", "").removeprefix("module.") for name in names]
    return {name: plain[name] for name in wanted}

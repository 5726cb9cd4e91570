"""Tunes 5% of a model's weights with transformers' Trainer: a first pass over the data measures which."""

import tempfile
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

import aimfair
from aimfair.selective.frozen import FrozenReport

DENSITY, WORDS, LENGTH = 0.05, 40, 12


class Measure(TrainerCallback):
    """Adds the gradients of every batch to the statistics; the step that follows finds none."""

    def __init__(self, probe: aimfair.Sensitivity):
        self.probe = probe

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.probe.update("task")


def sentences(count: int) -> list[dict[str, Tensor]]:
    """Of two classes: is the first word among the others?"""
    words = torch.randint(1, WORDS, (count, LENGTH))
    labels = torch.arange(count) % 2
    words[labels == 1, LENGTH // 2] = words[labels == 1, 0]
    return [{"input_ids": one, "labels": label} for one, label in zip(words, labels, strict=True)]


def trainer(model: nn.Module, optimizer: torch.optim.Optimizer, data: Any, **settings: Any) -> Trainer:
    arguments = TrainingArguments(
        tempfile.mkdtemp(), per_device_train_batch_size=32, report_to="none", save_strategy="no", disable_tqdm=True,
        use_cpu=True, **settings,
    )  # fmt: skip
    return Trainer(model, arguments, train_dataset=data, optimizers=(optimizer, None))


def measured_mask(model: nn.Module, data: Any) -> aimfair.ParameterMask:
    probe = aimfair.Sensitivity(model, sources=("task",), statistics="square")
    nothing = torch.optim.SGD(model.parameters(), lr=0.0)
    measuring = trainer(model, nothing, data, num_train_epochs=1, max_grad_norm=0)  # gradients as they are
    measuring.add_callback(Measure(probe))
    measuring.train()
    return probe.select("top_k", criterion="fisher", density=DENSITY)


def main() -> tuple[aimfair.ParameterMask, FrozenReport]:
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertForSequenceClassification(BertConfig(vocab_size=WORDS, max_position_embeddings=LENGTH, **size))
    data = sentences(256)
    mask, before = measured_mask(model, data), {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = aimfair.MaskedAdamW(model.named_parameters(), mask, lr=1e-3, state="compact")
    trainer(model, optimizer, data, num_train_epochs=2).train()
    print(report := aimfair.verify_frozen(model, mask, before))
    return mask, report


if __name__ == "__main__":
    main()

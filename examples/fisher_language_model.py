"""Tunes 2% of a small language model: the weights with the most Fisher information on the task (arXiv 2111.09839).

The model is a randomly initialised Llama and the task to continue arithmetic progressions, so nothing is downloaded.
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import aimfair

VOCABULARY, LENGTH, DENSITY = 31, 16, 0.02
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


def small_model() -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=LENGTH, **SMALL))


def progressions(batches: int, size: int = 32) -> list[torch.Tensor]:
    start, stride = torch.randint(VOCABULARY, (batches, size, 1)), torch.randint(1, 4, (batches, size, 1))
    return list((start + stride * torch.arange(LENGTH)) % VOCABULARY)


def fisher_mask(model: torch.nn.Module, batches: list[torch.Tensor], density: float) -> aimfair.ParameterMask:
    probe = aimfair.Sensitivity(model, sources=("task",), statistics="square")
    with probe.capture("task"):  # gradients are squared, added up and freed while backward runs
        for tokens in batches:
            model(tokens, labels=tokens).loss.backward()
    return probe.select("top_k", criterion="fisher", density=density)


def tune(model: torch.nn.Module, mask: aimfair.ParameterMask, batches: list[torch.Tensor]) -> list[float]:
    """The loss of every step."""
    optimizer = aimfair.MaskedAdamW(model.named_parameters(), mask, lr=3e-3, weight_decay=0.0, state="compact")
    losses = []
    for tokens in batches:
        optimizer.zero_grad()
        losses.append(model(tokens, labels=tokens).loss)
        losses[-1].backward()
        optimizer.step()
    return [loss.item() for loss in losses]


def main() -> dict[str, list[float]]:
    torch.manual_seed(0)
    model, batches = small_model(), progressions(100)
    fisher, random = fisher_mask(model, batches[:20], DENSITY), aimfair.ParameterMask.random(model, DENSITY)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    losses = {}
    for name, mask in (("fisher", fisher), ("random", random)):
        model.load_state_dict(start)
        losses[name] = tune(model, mask, batches)
        print(f"{name}: tuning {mask.density:.1%} of the weights, loss {losses[name][0]:.2f} -> {losses[name][-1]:.2f}")
    return losses


if __name__ == "__main__":
    main()

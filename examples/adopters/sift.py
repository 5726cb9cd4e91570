"""Tunes the weights of each matrix with the largest first gradient (SIFT, ICML 2024, arXiv 2312.11875)."""

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import aimfair

VOCABULARY, LENGTH, RATE = 31, 16, 0.05
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")
SMALL = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}


def small_model() -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=LENGTH, **SMALL))


def progressions(batches: int, size: int = 32) -> list[Tensor]:
    start, stride = torch.randint(VOCABULARY, (batches, size, 1)), torch.randint(1, 4, (batches, size, 1))
    return list((start + stride * torch.arange(LENGTH)) % VOCABULARY)


def sift_mask(model: nn.Module, rate: float) -> aimfair.ParameterMask:
    """From the gradients that the parameters hold: ``int(rate * n) + 1`` of the n of each matrix in MODULES."""
    matrices = {name: p for name, p in model.named_parameters() if any(module in name for module in MODULES)}
    sizes = {name: min(int(rate * p.numel()) + 1, p.numel()) for name, p in matrices.items()}
    gradients = {name: p.grad.abs() for name, p in matrices.items()}
    return aimfair.select_mask(gradients, k=sizes, within="tensor", parameters=model)


def main() -> tuple[float, float]:
    torch.manual_seed(0)
    model, batches = small_model(), progressions(80)
    model(batches[0], labels=batches[0]).loss.backward()
    mask = sift_mask(model, RATE)
    optimizer = aimfair.MaskedAdamW(model.named_parameters(), mask, lr=1e-2, weight_decay=0.0, state="compact")
    losses = []
    for tokens in batches:
        optimizer.zero_grad()
        losses.append(model(tokens, labels=tokens).loss)
        losses[-1].backward()
        optimizer.step()
    first, last = losses[0].item(), losses[-1].item()
    print(f"SIFT: tuning {mask.density:.1%} of the weights, loss {first:.2f} -> {last:.2f}")
    return first, last


if __name__ == "__main__":
    main()

"""The parts of the model: those of Stable Diffusion, small."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

TEXT_LENGTH = 24
"""Tokens of a prompt, at most."""

WIDTH = 64
"""Width of a token's embedding."""

BEGIN, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789,.'-"


def build_tokenizer(texts: Sequence[str]) -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer with a vocabulary in which each word of ``texts`` is one token.

    Letters are in it too, so that an unknown word is spelled rather than lost.
    """
    merges = learn_merges(sorted({word for text in texts for word in re.findall(r"[a-z]+", text)}))
    letters = [f"{letter}{end}" for end in ("", WORD_END) for letter in LETTERS]
    tokens = [BEGIN, END, *letters, *("".join(pair) for pair in merges)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TEXT_LENGTH)


def learn_merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Byte-pair encoding (arXiv 1508.07909) until every word is one token; of equally frequent pairs the first by name.

    The tokenizers library learns the same, but numbers tokens in another order at every call.
    """
    spelled = [[*word[:-1], word[-1] + WORD_END] for word in words]
    merges = []
    while pairs := Counter(pair for word in spelled for pair in pairwise(word)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spelled = [_merge(word, best) for word in spelled]
    return merges


def _merge(word: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for symbol in word:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return merged


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            projection_dim=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TEXT_LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_vae() -> AutoencoderKL:
    """32x32x3 pixels to 8x8x4 latents and back."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=32,
        mid_block_add_attention=False,
    )


def build_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(64, 112),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,  # heads: diffusers keeps this older name for their number
        norm_num_groups=16,
    )


def build_scheduler() -> DPMSolverMultistepScheduler:
    """Cosine noise schedule, velocity prediction; DPM-Solver++ of second order samples in a dozen steps."""
    return DPMSolverMultistepScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        lambda_min_clipped=-5.1,
        timestep_spacing="linspace",
        steps_offset=1,
    )

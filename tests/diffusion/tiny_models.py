"""Models of every family with a few thousand random weights, in diffusers' layout.

They read letters, digits, spaces and commas, one token each, 75 at most; T5 does not know the letter q. Their images
are ``SIZE`` pixels wide, those of Flux if it is asked for that.
"""

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from tests.generation.samples import SIZE

_SYMBOLS = [*string.ascii_lowercase, *string.digits, ","]
_CLIP_TOKENS = [*_SYMBOLS, *(symbol + "</w>" for symbol in _SYMBOLS), "<|startoftext|>", "<|endoftext|>"]
_T5_TOKENS = ["<pad>", "</s>", "<unk>", "▁", *(symbol for symbol in _SYMBOLS if symbol != "q")]


def save(build: Callable[[], Any], folder: Path) -> Path:
    """The model of :data:`FAMILIES` in a folder; always with the same weights."""
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        build().save_pretrained(folder)
    return folder


def stable_diffusion(**unet: Any) -> Any:
    return diffusers.StableDiffusionPipeline(
        vae=vae(4),
        text_encoder=_clip(transformers.CLIPTextModel, layers=1),
        tokenizer=_clip_tokenizer(),
        unet=_unet(
            ("DownBlock2D", "CrossAttnDownBlock2D"),
            ("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=2,
            **unet,
        ),
        scheduler=diffusers.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl() -> Any:
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(4),
        text_encoder=_clip(transformers.CLIPTextModel, layers=2),
        text_encoder_2=_clip(transformers.CLIPTextModelWithProjection, layers=2),
        tokenizer=_clip_tokenizer(),
        tokenizer_2=_clip_tokenizer(),
        unet=_unet(
            ("CrossAttnDownBlock2D",),  # one level: it is exported in the tests
            ("CrossAttnUpBlock2D",),
            cross_attention_dim=32,
            attention_head_dim=4,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=6 * 4 + 8,
        ),
        scheduler=diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def sd3(*, t5: bool = True) -> Any:
    return diffusers.StableDiffusion3Pipeline(
        transformer=diffusers.SD3Transformer2DModel(
            sample_size=SIZE // 2,
            patch_size=2,
            in_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=40,
            caption_projection_dim=16,
            pooled_projection_dim=16,
            out_channels=4,
            pos_embed_max_size=8,
            qk_norm="rms_norm",
            dual_attention_layers=(0,),
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(4, shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=_clip(transformers.CLIPTextModelWithProjection, layers=2),
        text_encoder_2=_clip(transformers.CLIPTextModelWithProjection, layers=2),
        text_encoder_3=t5_encoder(40) if t5 else None,
        tokenizer=_clip_tokenizer(),
        tokenizer_2=_clip_tokenizer(),
        tokenizer_3=t5_tokenizer() if t5 else None,
    )


def flux(*, guidance_embeds: bool = True) -> Any:
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae(4, shift_factor=0.1, scaling_factor=0.4, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=_clip(transformers.CLIPTextModel, layers=2),
        tokenizer=_clip_tokenizer(),
        text_encoder_2=t5_encoder(32),
        tokenizer_2=t5_tokenizer(),
        transformer=diffusers.FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=16,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=(4, 4, 8),
        ),
    )


FAMILIES: dict[str, Callable[[], Any]] = {
    "stable_diffusion": stable_diffusion,
    "sdxl": sdxl,
    "sd3": sd3,
    "flux": flux,
}


def small_decoder(folder: Path, latent_channels: int, levels: int) -> Path:
    """An AutoencoderTiny of random weights in a folder; each level but the first doubles the pixels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        diffusers.AutoencoderTiny(
            encoder_block_out_channels=(8,) * levels,
            decoder_block_out_channels=(8,) * levels,
            num_encoder_blocks=(1,) * levels,
            num_decoder_blocks=(1,) * levels,
            latent_channels=latent_channels,
        ).save_pretrained(folder)
    return folder


def _unet(down: tuple[str, ...], up: tuple[str, ...], **options: Any) -> Any:
    return diffusers.UNet2DConditionModel(
        sample_size=SIZE // 2,
        block_out_channels=(8, 16)[-len(down) :],
        layers_per_block=1,
        down_block_types=down,
        up_block_types=up,
        norm_num_groups=4,
        **options,
    )


def vae(latent_channels: int, **options: Any) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=4,
        sample_size=SIZE,
        **options,
    )


def _clip(kind: Any, layers: int) -> Any:
    return kind(
        transformers.CLIPTextConfig(
            vocab_size=len(_CLIP_TOKENS),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=layers,
            num_attention_heads=2,
            projection_dim=8,
            bos_token_id=len(_CLIP_TOKENS) - 2,
            eos_token_id=len(_CLIP_TOKENS) - 1,
            pad_token_id=len(_CLIP_TOKENS) - 1,
        )
    )


def _clip_tokenizer() -> Any:
    vocabulary = {token: number for number, token in enumerate(_CLIP_TOKENS)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def t5_encoder(width: int) -> Any:
    return transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=len(_T5_TOKENS) + 4,
            d_model=width,
            d_kv=8,
            d_ff=16,
            num_layers=1,
            num_heads=2,
            feed_forward_proj="gated-gelu",
        )
    )


def t5_tokenizer() -> Any:
    vocabulary = [(token, -1.0) for token in _T5_TOKENS]
    return transformers.T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=512)

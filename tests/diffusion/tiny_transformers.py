"""Models of the families with transformers and language models as text encoders: a few thousand random weights, in
diffusers' layout, with the components, classes and options of the real ones.

Their images are ``SIZE`` pixels wide if they are asked for that. The language models read bytes.
"""

from collections.abc import Callable
from typing import Any

import diffusers
import tokenizers
import transformers

from tests.diffusion import tiny_models
from tests.generation.samples import SIZE

_BYTES = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
_CHAT = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_WIDTH = 16  # of the language models
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
)


def lcm() -> Any:
    pipeline = tiny_models.stable_diffusion(time_cond_proj_dim=8)
    return diffusers.LatentConsistencyModelPipeline(
        **{
            **pipeline.components,
            "scheduler": diffusers.LCMScheduler(beta_schedule="scaled_linear", original_inference_steps=50),
        },
        requires_safety_checker=False,
    )


def pixart_alpha() -> Any:
    return _pixart(diffusers.PixArtAlphaPipeline, diffusers.DPMSolverMultistepScheduler(), additions=True)


def pixart_sigma() -> Any:
    return _pixart(diffusers.PixArtSigmaPipeline, diffusers.DPMSolverMultistepScheduler(), additions=False)


def _pixart(kind: Any, scheduler: Any, *, additions: bool) -> Any:
    return kind(
        tokenizer=tiny_models.t5_tokenizer(),
        text_encoder=tiny_models.t5_encoder(24),
        vae=tiny_models.vae(4),
        scheduler=scheduler,
        transformer=diffusers.PixArtTransformer2DModel(
            num_attention_heads=3,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8,
            num_layers=2,
            cross_attention_dim=24,
            sample_size=128 if additions else SIZE // 2,  # at 128 the pipeline passes the image size
            patch_size=2,
            use_additional_conditions=additions,
            interpolation_scale=1,
            caption_channels=24,
        ),
    )


def sana() -> Any:
    return diffusers.SanaPipeline(
        **_sana(guidance_embeds=False),
        scheduler=diffusers.DPMSolverMultistepScheduler(
            algorithm_type="dpmsolver++", use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
        ),
    )


def sana_sprint() -> Any:
    return diffusers.SanaSprintPipeline(
        **_sana(guidance_embeds=True, qk_norm="rms_norm_across_heads"),
        scheduler=diffusers.SCMScheduler(prediction_type="trigflow", sigma_data=0.5),
    )


def _sana(**transformer: Any) -> dict[str, Any]:
    symbols = ["<pad>", "<eos>", "<bos>", "<unk>", *_BYTES, "▁"]
    return {
        "tokenizer": transformers.GemmaTokenizer(
            vocab={symbol: number for number, symbol in enumerate(symbols)}, merges=[], add_bos_token=True
        ),
        "text_encoder": transformers.Gemma2Model(
            transformers.Gemma2Config(
                vocab_size=len(symbols),
                hidden_size=_WIDTH,
                intermediate_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=8,
                query_pre_attn_scalar=8,
                sliding_window=4096,
            )
        ),
        "vae": diffusers.AutoencoderDC(
            in_channels=3,
            latent_channels=4,
            attention_head_dim=4,
            encoder_block_types=("ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "EfficientViTBlock"),
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            encoder_qkv_multiscales=((), (5,)),
            decoder_qkv_multiscales=((), (5,)),
            upsample_block_type="interpolate",
            downsample_block_type="conv",
            scaling_factor=0.41407,
        ),
        "transformer": diffusers.SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=1,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=_WIDTH,
            sample_size=32,
            patch_size=1,
            **transformer,
        ),
    }


def flux2_klein(*, is_distilled: bool = False) -> Any:
    return diffusers.Flux2KleinPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=diffusers.AutoencoderKLFlux2(
            block_out_channels=(4, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=SIZE,
        ),
        text_encoder=_qwen3(layers=27),
        tokenizer=_chat_tokenizer(),
        transformer=diffusers.Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=3 * _WIDTH,
            timestep_guidance_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
        ),
        is_distilled=is_distilled,
    )


def qwen_image() -> Any:
    text = {
        "vocab_size": len(_CHAT) + len(_BYTES) + 4,
        "hidden_size": _WIDTH,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6},
        "max_position_embeddings": 2048,
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": _WIDTH}
    return diffusers.QwenImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=diffusers.AutoencoderKLQwenImage(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 2],
            num_res_blocks=1,
            temperal_downsample=[False],
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[1.5, 2.0, 1.0, 2.5],
        ),
        text_encoder=transformers.Qwen2_5_VLForConditionalGeneration(
            transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
        ),
        tokenizer=_chat_tokenizer(),
        transformer=diffusers.QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=_WIDTH,
            axes_dims_rope=(4, 6, 6),
        ),
    )


def z_image() -> Any:
    return diffusers.ZImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=tiny_models.vae(4, shift_factor=0.1, scaling_factor=0.4, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=_qwen3(layers=2),
        tokenizer=_chat_tokenizer(),
        transformer=diffusers.ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=_WIDTH,
            axes_dims=[4, 6, 6],
            axes_lens=[320, 64, 64],
        ),
    )


def _qwen3(layers: int) -> Any:
    config = transformers.Qwen3Config(
        vocab_size=len(_CHAT) + len(_BYTES) + 4,
        hidden_size=_WIDTH,
        intermediate_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=1024,
    )
    return transformers.Qwen3ForCausalLM(config) if layers > 2 else transformers.Qwen3Model(config)


def _chat_tokenizer() -> Any:
    vocabulary = {symbol: number for number, symbol in enumerate([*_BYTES, *_CHAT])}
    tokenizer = transformers.Qwen2Tokenizer(vocab=vocabulary, merges=[], additional_special_tokens=_CHAT[1:])
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


TRANSFORMERS: dict[str, Callable[[], Any]] = {
    "lcm": lcm,
    "pixart_alpha": pixart_alpha,
    "pixart_sigma": pixart_sigma,
    "sana": sana,
    "sana_sprint": sana_sprint,
    "flux2_klein": flux2_klein,
    "qwen_image": qwen_image,
    "z_image": z_image,
}

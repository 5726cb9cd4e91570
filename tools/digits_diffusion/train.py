"""Trains the shipped text-to-image model on the generator's part of the digits, and on nothing else.

    python -m tools.digits_diffusion.train --out DIR

Autoencoder first, then denoiser and text encoder together on its latents, all from one seed. The result is a folder
that ``StableDiffusionPipeline.from_pretrained`` loads, with float16 weights.
"""

import argparse
import copy
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from aimfair.base.seeds import derive_seed, generator
from aimfair.data.digits import INKS, Style, handwritten, random_style, render
from tools.digits_diffusion.architecture import (
    build_scheduler,
    build_text_encoder,
    build_tokenizer,
    build_unet,
    build_vae,
)
from tools.digits_diffusion.captions import caption, every_word

CAPTION_DROPOUT = 0.1
"""Share of training images without a caption: what classifier-free guidance needs."""

KL_WEIGHT = 2e-6
EMA_DECAY = 0.998


def training_images(rounds: int, seed: int) -> tuple[Tensor, list[str]]:
    """``(pixels [rounds * N, 3, 32, 32] in [-1, 1], captions)``: each digit ``rounds`` times, in random styles."""
    digits, labels, _ = handwritten("generator")
    rng = generator(seed, "pictures")  # this name belongs to the seed of the shipped model
    inks = list(INKS)
    drawn, captions = [], []
    for _ in range(rounds):
        styles: list[Style] = [random_style(str(rng.choice(inks)), rng) for _ in labels]
        drawn.append(render(digits, styles, rng))
        captions += [caption(int(label), style, rng) for label, style in zip(labels, styles, strict=True)]
    pixels = torch.from_numpy(np.concatenate(drawn)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return pixels.contiguous(), captions


def train(
    modules: list[nn.Module],
    loss_of: Callable[[], Tensor],
    steps: int,
    lr: float,
    after_step: Callable[[int], None] = lambda step: None,
    print_every: int = 100,
) -> None:
    """AdamW, its learning rate rising at first and then falling along a cosine; prints the mean loss."""
    parameters = [p for module in modules for p in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr, betas=(0.9, 0.99), weight_decay=1e-2)
    rise = max(1, min(200, steps // 10))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / rise, 0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    started, total = time.perf_counter(), 0.0
    for step in range(1, steps + 1):
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        after_step(step)
        total += loss.item()
        if step % print_every == 0:
            seconds = time.perf_counter() - started
            print(f"step {step}/{steps}  loss {total / print_every:.5f}  {seconds:.0f} s", flush=True)
            total = 0.0


def train_vae(vae: AutoencoderKL, pixels: Tensor, steps: int, batch: int, seed: int) -> None:
    """Reconstruction with a weak pull of the latents to the normal distribution."""
    rng = torch.Generator().manual_seed(derive_seed(seed, "vae"))

    def loss_of() -> Tensor:
        x = pixels[torch.randint(len(pixels), (batch,), generator=rng)].to(vae.device)
        latent = vae.encode(x).latent_dist
        noise = torch.randn(latent.mean.shape, generator=rng).to(vae.device)
        y = vae.decode(latent.mean + latent.std * noise).sample
        return F.mse_loss(y, x) + 0.2 * F.l1_loss(y, x) + KL_WEIGHT * latent.kl().mean()

    train([vae], loss_of, steps, lr=2e-3)


@torch.no_grad()
def encode(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Latents of unit variance; the factor goes into the autoencoder's configuration."""
    latents = torch.cat([vae.encode(part.to(vae.device)).latent_dist.mean.cpu() for part in pixels.split(512)])
    factor = float(1 / latents.std())
    vae.register_to_config(scaling_factor=factor)
    return latents * factor


def train_denoiser(
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    latents: Tensor,
    captions: list[str],
    steps: int,
    batch: int,
    seed: int,
    save: Callable[[UNet2DConditionModel, CLIPTextModel], None],
    save_every: int = 500,
) -> None:
    """Velocity regression (arXiv 2202.00512); saves the exponential moving averages of both networks."""
    tokens = tokenizer([*captions, ""], padding="max_length", truncation=True, return_tensors="pt").input_ids
    alphas = build_scheduler().alphas_cumprod
    rng = torch.Generator().manual_seed(derive_seed(seed, "denoiser"))
    averages = copy.deepcopy(unet), copy.deepcopy(text_encoder)

    def loss_of() -> Tensor:
        index = torch.randint(len(latents), (batch,), generator=rng)
        timestep = torch.randint(len(alphas), (batch,), generator=rng)
        noise = torch.randn((batch, *latents.shape[1:]), generator=rng)
        dropped = torch.rand(batch, generator=rng) < CAPTION_DROPOUT
        clean, alpha = latents[index], alphas[timestep][:, None, None, None]
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        text = tokens[torch.where(dropped, len(captions), index)].to(unet.device)
        predicted = unet(
            noisy.to(unet.device, memory_format=torch.channels_last), timestep.to(unet.device), text_encoder(text)[0]
        ).sample
        return F.mse_loss(predicted, velocity.to(unet.device))

    @torch.no_grad()
    def average(step: int) -> None:
        decay = min(EMA_DECAY, step / (9 + step))
        for mean, module in zip(averages, (unet, text_encoder), strict=True):
            torch._foreach_lerp_(list(mean.parameters()), list(module.parameters()), 1 - decay)
        if step % save_every == 0 or step == steps:
            save(*averages)

    train([unet, text_encoder], loss_of, steps, 1.5e-3, average)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vae-steps", type=int, default=1200)
    parser.add_argument("--vae", type=Path, help="a trained autoencoder, instead of training one")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--rounds", type=int, default=40, help="styles in which each digit is drawn")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(derive_seed(arguments.seed, "weights"))
    started = time.perf_counter()

    tokenizer = build_tokenizer(every_word())
    vae, unet = build_vae().to(arguments.device), build_unet().to(arguments.device, memory_format=torch.channels_last)
    text_encoder = build_text_encoder(tokenizer).to(arguments.device)
    pixels, captions = training_images(arguments.rounds, arguments.seed)

    if arguments.vae is None:
        train_vae(vae, pixels, arguments.vae_steps, 64, arguments.seed)
    else:
        vae = AutoencoderKL.from_pretrained(arguments.vae).to(arguments.device)
    latents = encode(vae.eval(), pixels)
    del pixels

    def save(unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        halves = [copy.deepcopy(part).to("cpu", torch.float16) for part in (vae, text_encoder, unet)]
        pipeline = StableDiffusionPipeline(
            halves[0], halves[1], tokenizer, halves[2], build_scheduler(), None, None, requires_safety_checker=False
        )
        pipeline.save_pretrained(arguments.out)

    train_denoiser(
        unet, text_encoder, tokenizer, latents, captions, arguments.steps, arguments.batch, arguments.seed, save
    )
    print(f"{arguments.out}: {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()

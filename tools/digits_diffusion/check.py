"""Does the model obey its prompts? Prints the figures of its model card.

python -m tools.digits_diffusion.check MODEL --images 1000 --sheet sheet.png
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from aimfair.base.seeds import derive_seed, generator
from aimfair.data.digits import DIGIT_NAMES, INKS, handwritten, random_style, render
from aimfair.diffusion.text_to_image import Diffusion
from aimfair.generation.settings import GenerateSettings
from tools.digits_diffusion.reader import Images, features, fit_reader, read_inks


def sample(model: Path, settings: GenerateSettings, count: int) -> tuple[Images, list[int], list[str], list[str]]:
    """``(images, digits, inks, texts)``: every digit in every ink in turn, in styles drawn at random."""
    rng = generator("check")
    inks = list(INKS)
    digits = [number % 10 for number in range(count)]
    styles = [random_style(inks[number // 10 % len(inks)], rng) for number in range(count)]
    texts = [
        ", ".join([f"a handwritten {DIGIT_NAMES[digit]} in {style.ink} ink", *style.contexts.values()])
        for digit, style in zip(digits, styles, strict=True)
    ]
    diffusion = Diffusion(model, settings, torch.device("cpu"))
    size = settings.batch_size
    images = [
        diffusion.sample(texts[i : i + size], [derive_seed("check", n) for n in range(i, min(i + size, count))]).images
        for i in range(0, count, size)
    ]
    return np.concatenate(images), digits, [style.ink for style in styles], texts


def check(model: Path, settings: GenerateSettings, count: int, sheet: Path | None = None) -> dict[str, float]:
    """Shares in [0, 1]: digits and inks read as asked, and how much images of one prompt differ.

    ``reader_on_real`` is the share of real digits of the generator's part, unknown to the reader, that it reads right:
    what can be expected of a perfect model. The two distances are the mean absolute difference of pixels, in grey
    levels, between images of one prompt and between real digits of one class, ink and style.
    """
    images, digits, inks, texts = sample(model, settings, count)
    reader = fit_reader()
    if sheet is not None:
        rows = images[:100].reshape(10, 10, *images.shape[1:]).transpose(0, 2, 1, 3, 4)
        Image.fromarray(rows.reshape(10 * images.shape[1], -1, 3)).resize((960, 960), Image.Resampling.NEAREST).save(
            sheet
        )
    real, labels, _ = handwritten("generator")
    rng = generator("check", "real")
    drawn = render(real, [random_style(str(rng.choice(list(INKS))), rng) for _ in labels], rng)
    read = reader.predict(features(images))
    result = {
        "digits": float(np.mean(read == digits)),
        "inks": float(np.mean(read_inks(images) == inks)),
        "reader_on_real": float(np.mean(reader.predict(features(drawn)) == labels)),
        "distance_within_prompt": _distance_within_prompts(model, settings, texts[:10]),
    }
    result |= {f"digit {digit}": float(np.mean(read[digit::10] == digit)) for digit in range(10)}
    return {name: round(value, 4) for name, value in result.items()}


def _distance_within_prompts(model: Path, settings: GenerateSettings, texts: list[str], each: int = 8) -> float:
    diffusion = Diffusion(model, settings, torch.device("cpu"))
    distances = []
    for number, text in enumerate(texts):
        images = diffusion.sample([text] * each, [derive_seed("within", number, i) for i in range(each)]).images
        pairs = np.abs(images[:, None].astype(int) - images[None]).mean((2, 3, 4))
        distances.append(pairs[np.triu_indices(each, 1)].min())
    return float(np.min(distances))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--sheet", type=Path, help="where to write a sheet of the first hundred")
    arguments = parser.parse_args()
    settings = GenerateSettings(steps=arguments.steps, guidance_scale=arguments.guidance)
    print(json.dumps(check(arguments.model.resolve(), settings, arguments.images, arguments.sheet)))


if __name__ == "__main__":
    main()

"""Emoji of another drawing style in place of a text-to-image model: a domain gap that is known and can be set.

They show the people of the real training images, never those of validation or test.
"""

from collections.abc import Sequence

import numpy as np

from aimfair.base.seeds import derive_seed
from aimfair.data.emoji import Emoji, everyone, labels_of, pixels, split_people, usable
from aimfair.data.emoji_drawing import degrade, draw
from aimfair.data.settings import DataSettings
from aimfair.diffusion.sampler import Samples
from aimfair.generation.settings import EmojiSettings
from aimfair.prompts.grammar import Prompt


def emoji_prompts(data: DataSettings) -> list[Prompt]:
    """A prompt for each emoji that shows a group of ``data``: its name."""
    train, _, _ = split_people(data)
    emoji = usable(data, train)
    labels = labels_of(data, emoji)
    return [
        _prompt(one, y, a, labels.target.names[y], labels.protected.names[a])
        for one, y, a in zip(emoji, labels.target.values.tolist(), labels.protected.values.tolist(), strict=True)
    ]


def _prompt(emoji: Emoji, y: int, a: int, target: str, protected: str) -> Prompt:
    return Prompt(id=f"{emoji.number:04d}", y=y, a=a, text=emoji.name, contexts={}, target=target, protected=protected)


class EmojiSampler:
    """Draws the emoji that prompts name.

    Args:
        size: pixels along each side.
    """

    def __init__(self, settings: EmojiSettings, size: int):
        self._settings, self._size = settings, size
        self._numbers = {one.name: one.number for one in everyone()}
        self.seconds: dict[str, float] = {}  # not measured
        self.small_decoders = False

    def sample(self, texts: Sequence[str], seeds: Sequence[int]) -> Samples:
        """One image for each name of an emoji and seed."""
        emoji = pixels(self._settings.style)[[self._numbers[text] for text in texts]]
        images = draw(emoji, seeds, self._size)
        noise = [derive_seed(seed, "degradation") for seed in seeds]
        return Samples(degrade(images, self._settings.degradation, noise), np.ones(len(texts), dtype=np.bool_))

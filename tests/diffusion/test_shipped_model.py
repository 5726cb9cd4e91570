"""The shipped model obeys its prompts: the figures of its model card, on fewer images, by the same reader."""

import pytest

from aimfair.commands.settings import BUNDLED
from aimfair.config.load import load
from aimfair.diffusion.model import SHIPPED
from aimfair.prompts.grammar import write_prompts
from tools.digits_diffusion.architecture import build_tokenizer
from tools.digits_diffusion.captions import every_word
from tools.digits_diffusion.check import check

MODEL = SHIPPED["digits"]


@pytest.fixture(scope="module")
def config():
    return load(BUNDLED / "demo.yaml")


def test_it_is_small():
    assert sum(path.stat().st_size for path in MODEL.rglob("*.safetensors")) < 8_000_000


@pytest.mark.slow
def test_it_draws_the_digit_and_the_ink_that_the_prompt_asks_for(config):
    figures = check(MODEL, config.generate, 120)
    assert figures["digits"] >= 0.9
    assert figures["inks"] >= 0.98
    assert figures["reader_on_real"] >= 0.95  # the reader itself can read
    assert figures["distance_within_prompt"] >= 3  # grey levels between the two most alike of eight


def test_every_word_of_the_demo_is_one_token(config):
    tokenizer = build_tokenizer(every_word())
    for prompt in write_prompts(config.prompts):
        words = prompt.text.replace(",", " ,").split()
        assert len(tokenizer.tokenize(prompt.text)) == len(words)

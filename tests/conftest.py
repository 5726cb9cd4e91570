"""Fixtures of the whole suite, and its order."""

import gc
import zlib
from pathlib import Path

import pytest
import torch

LONG = ("test_verbs.py", "test_distributed.py", "test_onnx_runtime.py", "test_stages.py", "test_base_install.py")
"""Files that take most of the time. They come first, so that of several processes none is left alone with one."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONG)  # stable: otherwise as they were


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    device = torch.device(request.config.getoption("--device"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: torch sees no CUDA device")
    torch.backends.cudnn.deterministic = True  # tests compare the gradients of two backward passes
    return device


_THREADS = torch.get_num_threads()


@pytest.fixture(autouse=True)
def threads() -> None:
    """A run in an earlier test may have taken another number, on which last bits depend."""
    if torch.get_num_threads() != _THREADS:
        torch.set_num_threads(_THREADS)


@pytest.fixture(scope="module", autouse=True)
def frozen() -> None:
    """What earlier modules have imported and left is not looked at by later collections, which take 0.3 s else."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seeded(request: pytest.FixtureRequest) -> None:
    """Every test draws its own inputs, and the same ones in every run."""
    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()))


# -- a finished run ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of ``tiny_run``: its photographs and the finished run. Tests change copies only."""
    from tests import tiny_run

    return tiny_run.once(tmp_path_factory, "tiny", tiny_run.make)


@pytest.fixture(scope="session")
def photographs(tiny: Path) -> Path:
    return tiny / "photographs"


# -- small models: of each family of text-to-image models, and one that chats ------------------------------------------

POSITIONS = 8192
"""Tokens that the chat model takes."""


@pytest.fixture(scope="session")
def model(models: dict[str, Path]) -> Path:
    """A Stable Diffusion of a few thousand random weights."""
    return models["stable_diffusion"]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of each family, by its name."""
    from tests.diffusion.tiny_models import FAMILIES, save  # imports diffusers, which most tests do without

    folder = tmp_path_factory.mktemp("models")
    return {name: save(build, folder / name) for name, build in FAMILIES.items()}


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model of a few thousand random weights; every byte is a token."""
    import tokenizers
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    symbols = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    bytes_alone = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={symbol: number for number, symbol in enumerate(symbols)}, merges=[])
    )
    bytes_alone.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_alone.decoder = tokenizers.decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=bytes_alone, eos_token="<end>")
    tokenizer.chat_template = (
        "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    folder = tmp_path_factory.mktemp("chat") / "tiny"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=POSITIONS,
                bos_token_id=None,
                eos_token_id=tokenizer.eos_token_id,
            )
        ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def digits_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The parts of the shipped model, exported in single precision."""
    from aimfair.diffusion.model import SHIPPED

    return exported(SHIPPED["digits"], "float32", "digits_onnx", tmp_path_factory)


@pytest.fixture(scope="session")
def small_onnx(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The parts of :func:`model`, exported in half precision."""
    return exported(model, "float16", "small_onnx", tmp_path_factory)


def exported(model: Path, dtype: str, name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Takes 15 seconds: once for all processes."""
    from aimfair.base.interrupt import NEVER
    from aimfair.diffusion.engines.export import export
    from aimfair.diffusion.text_to_image import load_source
    from aimfair.generation.settings import GenerateSettings
    from tests.tiny_run import once

    def make(folder: Path) -> None:
        source, _ = load_source(model, GenerateSettings(dtype=dtype), torch.device("cpu"))
        export(source, folder, NEVER)

    return once(tmp_path_factory, name, make)

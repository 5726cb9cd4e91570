"""A local chat model of transformers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from aimfair.base.checked_weights import load_model, load_tokenizer
from aimfair.base.errors import AimfairError
from aimfair.base.interrupt import NEVER, Interrupt
from aimfair.base.libraries import optional
from aimfair.base.seeds import derive_seed
from aimfair.prompts.providers import Reply
from aimfair.prompts.settings import LanguageModelSettings

_KEY = "prompts.llm.model"
_MAX_TOKENS = 2048


class LocalModel:
    """Runs a model from a folder, without its code, without pickle and without network.

    Args:
        settings: ``prompts.llm``.
        seed: of sampling; the same sequence of messages has the same replies.

    Raises:
        AimfairError: transformers is not installed, or the folder has no chat model.
    """

    def __init__(
        self, settings: LanguageModelSettings, seed: int, device: torch.device, *, interrupt: Interrupt = NEVER
    ):
        with optional("prompts.provider transformers", "transformers"):
            from transformers import AutoModelForCausalLM
        folder = Path(settings.model)
        if not (folder / "config.json").is_file():
            raise AimfairError(f"{_KEY}: {folder} has no config.json, expected the folder of a chat model")
        self._settings, self._seed, self._device, self._interrupt = settings, seed, device, interrupt
        self._asked = 0
        self._tokenizer = load_tokenizer(_KEY, folder)
        if not self._tokenizer.chat_template:
            raise AimfairError(f"{_KEY}: the tokenizer of {folder} has no chat template, expected a chat model")
        model = load_model(_KEY, folder, AutoModelForCausalLM, dtype="auto")
        self._model = model.to(device).eval()

    def ask(self, message: str, schema: Mapping[str, Any]) -> Reply:
        """See :class:`ChatModel`; the schema is not used."""
        from transformers import StoppingCriteriaList

        inputs = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": message}],
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
            enable_thinking=False,  # templates without this switch ignore it
        ).to(self._device)
        given = int(inputs["input_ids"].shape[1])
        most = self._room(given)
        sampling = self._sampling()
        with (
            torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []),
            torch.inference_mode(),
        ):
            torch.manual_seed(derive_seed(self._seed, "chat", self._asked))
            self._asked += 1
            output = self._model.generate(
                **inputs,
                **sampling,
                max_new_tokens=most,
                pad_token_id=self._pad(),
                stopping_criteria=StoppingCriteriaList([self._stopped]),
            )
        self._interrupt.check()
        new = output[0, given:]
        text = self._tokenizer.decode(new, skip_special_tokens=True)
        return Reply(text, "cut off" if len(new) >= most else "done", given, len(new))

    def _room(self, given: int) -> int:
        """Most tokens of a reply."""
        wanted = self._settings.max_tokens or _MAX_TOKENS
        positions: int | None = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        if positions is None:
            return wanted
        if given >= positions:
            raise AimfairError(
                f"{_KEY}: the request has {given} tokens, the model takes {positions}; lower "
                "prompts.llm.per_request, or use another model"
            )
        return min(wanted, positions - given)

    def _sampling(self) -> dict[str, Any]:
        temperature = self._settings.temperature
        if temperature == 0:  # greedy; unset the sampling parameters of the model folder
            return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        return {"do_sample": True} | ({} if temperature is None else {"temperature": temperature})

    def _pad(self) -> Any:
        """The padding token, or the end-of-text token; never used, as one text is generated at a time."""
        number = self._tokenizer.pad_token_id
        return self._tokenizer.eos_token_id if number is None else number

    def _stopped(self, tokens: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return torch.full((len(tokens),), self._interrupt.requested, device=tokens.device)

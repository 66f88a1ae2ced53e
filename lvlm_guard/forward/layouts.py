"""The layouts of a decode's prompts, from which every forward's layout is made."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from lvlm_guard import anatomy
from lvlm_guard.forward.interventions.layers import LayerInterventions
from lvlm_guard.forward.interventions.layout import AcrossLayout, ForwardLayout, PromptLayout
from lvlm_guard.forward.interventions.running import RunningForward
from lvlm_guard.forward.preparation import PreparedDecode
from lvlm_guard.forward.steps import TokenHistory
from lvlm_guard.strategy.branches import MAIN
from lvlm_guard.strategy.generation import Generation


class DecodeLayouts:
    """Where image, padding and generated tokens lie in main and in every branch.

    Args:
        main: Main as generate prepared it.
        gen: The generation of the call.
        history: The generated tokens.
        interventions: What is done inside the layers, if anything.
    """

    def __init__(
        self, main: PreparedDecode, gen: Generation, history: TokenHistory, interventions: LayerInterventions | None
    ) -> None:
        self._gen = gen
        self._history = history
        self._interventions = interventions
        self._prompts: dict[Hashable, PromptLayout] = {}
        self.add(MAIN, main)

    @property
    def rows(self) -> int:
        """Rows of main."""
        return int(self._prompts[MAIN].image.shape[0])

    def add(self, key: Hashable, prepared: PreparedDecode) -> None:
        """Find where the image and the padding of a prompt are."""
        ids, length = prepared.input_ids, prepared.length
        rows = int(prepared.kwargs["inputs_embeds"].shape[0]) if "inputs_embeds" in prepared.kwargs else ids.shape[0]
        image = torch.zeros(rows, length, dtype=torch.bool, device=ids.device)
        requested = self._gen.prompt.image_mask.repeat_interleave(
            rows // max(self._gen.prompt.image_mask.shape[0], 1), dim=0
        )
        places = prepared.kwargs.get(anatomy.IMAGE_PLACES)
        if isinstance(places, Tensor) and places.shape == image.shape:
            image = places == 1
        elif ids.shape[1] == length and self._gen.prompt.image_token is not None:
            image = ids == self._gen.prompt.image_token
        elif requested.shape == image.shape:
            image = requested
        mask = prepared.kwargs.get("attention_mask")
        if not isinstance(mask, Tensor) or mask.shape != image.shape:
            mask = torch.ones_like(image)
        self._prompts[key] = PromptLayout(image, mask.bool(), _find_across(prepared, requested, rows))

    def lay_out(self, keys: Sequence[Hashable], new: int, *, ends: bool = True) -> RunningForward:
        """Lay out a forward that holds the rows of `keys` and runs `new` positions of the longest prompt.

        `ends` says whether the prompts end in it: a prefix that runs by itself predicts nothing.
        """
        prompts = {key: self._prompts[key] for key in keys}
        layout = ForwardLayout(prompts, self._history.length, new, ends)
        return RunningForward(self._gen, layout, self._interventions)

    def read(self, running: RunningForward, logits: Tensor, keep: int) -> dict[tuple[int, bool], Tensor]:
        """Readouts of main's forward that has just run, at the last `keep` positions."""
        if self._interventions is None:
            return {}
        return self._interventions.read(running, logits, min(keep, logits.shape[1]))

    def select(self, index: Tensor) -> None:
        """Continue with other rows, as many as `index` names."""
        self._prompts = {key: prompt.select(index) for key, prompt in self._prompts.items()}


def _find_across(prepared: PreparedDecode, image: Tensor, rows: int) -> AcrossLayout | None:
    """What the encoder of a prompt read, by main's image `[rows, length]`; None without one, and where it reads images alone."""
    encoded = getattr(prepared.kwargs.get("encoder_outputs"), "last_hidden_state", None)
    if not isinstance(encoded, Tensor) or anatomy.encodes_images_alone(prepared.module):
        return None
    if image.shape != (rows, encoded.shape[1]):
        no_image = torch.zeros(rows, encoded.shape[1], dtype=torch.bool, device=encoded.device)
        return AcrossLayout(no_image, ~no_image, is_known=False)
    mask = prepared.kwargs.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.shape != image.shape:
        mask = torch.ones_like(image)
    return AcrossLayout(image, mask.bool())

"""Control: ask the model in its prompt to prefer yes."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lvlm_guard import Generation, InputEdit, Insert, hookimpl
from lvlm_guard.fields import Text

HINT = " If you are not sure, answer yes."


@dataclass(frozen=True)
class PBA:
    """Put a hint to prefer yes into the prompt.

    Prompt-based adjustment, Yin H. et al., arXiv 2504.10020; the wording is ours. The paper's hint follows the
    question. Chat templates fence the question with special tokens, so `after_image` puts the hint after the image,
    which is always inside the user's turn; `end` is the end of the prompt and suits prompts without a template. An empty
    hint is neutral.
    """

    name: ClassVar[str] = "pba"
    family: ClassVar[str] = "control"
    paper: ClassVar[str] = "arXiv 2504.10020"
    cost: ClassVar[str] = "a longer prompt"
    neutral: ClassVar[dict[str, str]] = {"hint": ""}

    hint: Annotated[Text, Field(description="text added to the prompt; empty is off")] = HINT
    place: Annotated[Literal["after_image", "end"], Field(description="where the hint goes")] = "after_image"

    @hookimpl
    def edit_inputs(self, gen: Generation) -> Iterable[InputEdit]:
        """Insert the hint."""
        yield InputEdit(tokens=(Insert(gen.tokenize(self.hint), self.place),))

"""Offline fitting: turn demonstrations into the artefact of a strategy.

Fitters live beside their strategies and are offered through the hook `register_fitters`. `fit` runs one; the other
functions are what fitters are made of. Fitters run models as they are and leave them unchanged.
"""

from lvlm_guard.anatomy import decoder_layers as decoder_layers
from lvlm_guard.anatomy import depth_and_heads as depth_and_heads
from lvlm_guard.anatomy import final_norm as find_final_norm
from lvlm_guard.anatomy import vision_layers as vision_layers
from lvlm_guard.deprecation import moved_names
from lvlm_guard.fitting.answer_states import AnswerStates as AnswerStates
from lvlm_guard.fitting.artefact import fit as fit
from lvlm_guard.fitting.demonstrations import read_demonstrations as read_demonstrations
from lvlm_guard.fitting.encoding import check_chat_template as check_chat_template
from lvlm_guard.fitting.encoding import edit_pictures as edit_pictures
from lvlm_guard.fitting.encoding import encode_answer as encode_answer
from lvlm_guard.fitting.encoding import encode_prompts as encode_prompts
from lvlm_guard.fitting.labelled import read_labelled as read_labelled
from lvlm_guard.fitting.labelled import read_synonyms as read_synonyms
from lvlm_guard.fitting.states import compute_hidden_states as compute_hidden_states
from lvlm_guard.fitting.states import record_outputs as record_outputs
from lvlm_guard.strategy.fitters import Demonstration as Demonstration
from lvlm_guard.strategy.fitters import Fitted as Fitted
from lvlm_guard.strategy.fitters import Fitter as Fitter
from lvlm_guard.strategy.fitters import LabelledObject as LabelledObject
from lvlm_guard.strategy.fitters import LabelledPicture as LabelledPicture
from lvlm_guard.strategy.fitters import LabelledPictures as LabelledPictures
from lvlm_guard.strategy.fitters import Track as Track
from lvlm_guard.strategy.user_functions import call_user_function as call_user_function

__all__ = [
    "AnswerStates",
    "Demonstration",
    "Fitted",
    "Fitter",
    "LabelledObject",
    "LabelledPicture",
    "LabelledPictures",
    "Track",
    "call_user_function",
    "check_chat_template",
    "compute_hidden_states",
    "decoder_layers",
    "depth_and_heads",
    "edit_pictures",
    "encode_answer",
    "encode_prompts",
    "find_final_norm",
    "fit",
    "read_demonstrations",
    "read_labelled",
    "read_synonyms",
    "record_outputs",
    "vision_layers",
]

__getattr__ = moved_names(
    "lvlm_guard.fitting",
    {
        "encode": "lvlm_guard.fitting:encode_answer",
        "encode_all": "lvlm_guard.fitting:encode_prompts",
        "hidden_states": "lvlm_guard.fitting:compute_hidden_states",
        "watching": "lvlm_guard.fitting:record_outputs",
    },
)

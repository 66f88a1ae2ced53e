"""Hallucination mitigation for vision-language models at inference time, as plugins round `model.generate`."""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if importlib.util.find_spec("lvlm_guard_kernels") is None:
    raise ImportError("lvlm_guard is not installed, only on the path. Install the checkout: pip install -e .")

if TYPE_CHECKING:
    from lvlm_guard.call.looks.look import Look as Look
    from lvlm_guard.call.looks.talking import Conversation as Conversation
    from lvlm_guard.call.report import Change as Change
    from lvlm_guard.call.report import Forwards as Forwards
    from lvlm_guard.call.report import Origin as Origin
    from lvlm_guard.call.report import Report as Report
    from lvlm_guard.call.report import RequestReport as RequestReport
    from lvlm_guard.call.report import StrategyReport as StrategyReport
    from lvlm_guard.errors import FitRefused as FitRefused
    from lvlm_guard.errors import GuardError as GuardError
    from lvlm_guard.errors import GuardWarning as GuardWarning
    from lvlm_guard.errors import InputError as InputError
    from lvlm_guard.errors import KernelsRefused as KernelsRefused
    from lvlm_guard.errors import ModelRefused as ModelRefused
    from lvlm_guard.errors import ModeRefused as ModeRefused
    from lvlm_guard.errors import NoEffectWarning as NoEffectWarning
    from lvlm_guard.errors import NonFiniteLogits as NonFiniteLogits
    from lvlm_guard.errors import PluginError as PluginError
    from lvlm_guard.errors import PluginRejected as PluginRejected
    from lvlm_guard.errors import ProcessorNeeded as ProcessorNeeded
    from lvlm_guard.errors import Refused as Refused
    from lvlm_guard.errors import StackError as StackError
    from lvlm_guard.errors import StrategyRefused as StrategyRefused
    from lvlm_guard.errors import UncompiledWarning as UncompiledWarning
    from lvlm_guard.forward.executors.executor import ExecutorName as ExecutorName
    from lvlm_guard.guard import Guard as Guard
    from lvlm_guard.guard import WithoutImage as WithoutImage
    from lvlm_guard.host.stack import Stack as Stack
    from lvlm_guard.request.picture_sources import PictureSources as PictureSources
    from lvlm_guard.strategy.artefacts import Artefact as Artefact
    from lvlm_guard.strategy.branches import Branch as Branch
    from lvlm_guard.strategy.branches import Exchange as Exchange
    from lvlm_guard.strategy.branches import FeatureEdit as FeatureEdit
    from lvlm_guard.strategy.branches import InputEdit as InputEdit
    from lvlm_guard.strategy.branches import Insert as Insert
    from lvlm_guard.strategy.branches import PictureEdit as PictureEdit
    from lvlm_guard.strategy.branches import PictureEdits as PictureEdits
    from lvlm_guard.strategy.branches import PixelEdit as PixelEdit
    from lvlm_guard.strategy.branches import Place as Place
    from lvlm_guard.strategy.branches import Replace as Replace
    from lvlm_guard.strategy.branches import TokenEdit as TokenEdit
    from lvlm_guard.strategy.edits import AttentionCapture as AttentionCapture
    from lvlm_guard.strategy.edits import AttentionEdit as AttentionEdit
    from lvlm_guard.strategy.edits import Depth as Depth
    from lvlm_guard.strategy.edits import HiddenEdit as HiddenEdit
    from lvlm_guard.strategy.edits import Operation as Operation
    from lvlm_guard.strategy.edits import Readout as Readout
    from lvlm_guard.strategy.edits import View as View
    from lvlm_guard.strategy.forward import Forward as Forward
    from lvlm_guard.strategy.generation import Generation as Generation
    from lvlm_guard.strategy.generation import Services as Services
    from lvlm_guard.strategy.hidden_operations import Project as Project
    from lvlm_guard.strategy.hidden_operations import Shift as Shift
    from lvlm_guard.strategy.hidden_operations import Turn as Turn
    from lvlm_guard.strategy.hidden_operations import Vectors as Vectors
    from lvlm_guard.strategy.hookspecs import hookimpl as hookimpl
    from lvlm_guard.strategy.loops import DecodingLoop as DecodingLoop
    from lvlm_guard.strategy.loops import Revision as Revision
    from lvlm_guard.strategy.loops import Search as Search
    from lvlm_guard.strategy.prompt import ModelInfo as ModelInfo
    from lvlm_guard.strategy.prompt import Prompt as Prompt
    from lvlm_guard.strategy.prompt import PromptStates as PromptStates
    from lvlm_guard.strategy.results import CallResults as CallResults
    from lvlm_guard.strategy.returned_values import check_returned as check_returned
    from lvlm_guard.strategy.rows import Rows as Rows
    from lvlm_guard.strategy.terms import Bias as Bias
    from lvlm_guard.strategy.terms import Contrast as Contrast
    from lvlm_guard.strategy.terms import LayerDivergence as LayerDivergence
    from lvlm_guard.strategy.terms import Mix as Mix
    from lvlm_guard.strategy.terms import Plausible as Plausible
    from lvlm_guard.strategy.terms import Restrict as Restrict
    from lvlm_guard.strategy.terms import Source as Source
    from lvlm_guard.strategy.terms import Statistics as Statistics
    from lvlm_guard.strategy.terms import Term as Term
    from lvlm_guard.strategy.terms import Weight as Weight

__version__ = "0.2.0"

# Public names and the modules that own them; loaded at first use, so that `import lvlm_guard` stays cheap.
_OWNERS = {
    "strategy.artefacts": ("Artefact",),
    "strategy.branches": ("Branch", "Exchange", "FeatureEdit", "InputEdit", "Insert", "PictureEdit", "PictureEdits", "PixelEdit", "Place", "Replace", "TokenEdit"),
    "strategy.edits": ("AttentionCapture", "AttentionEdit", "Depth", "HiddenEdit", "Operation", "Readout", "View"),
    "strategy.hidden_operations": ("Project", "Shift", "Turn", "Vectors"),
    "strategy.loops": ("DecodingLoop", "Revision", "Search"),
    "errors": (
        "FitRefused", "GuardError", "GuardWarning", "InputError", "KernelsRefused", "ModeRefused", "ModelRefused",
        "NoEffectWarning", "NonFiniteLogits", "PluginError", "PluginRejected", "ProcessorNeeded", "Refused", "StackError",
        "StrategyRefused", "UncompiledWarning",
    ),
    "strategy.generation": ("Generation", "Services"),
    "strategy.prompt": ("ModelInfo", "Prompt", "PromptStates"),
    "guard": ("Guard", "WithoutImage"),
    "strategy.hookspecs": ("hookimpl",),
    "call.looks.look": ("Look",),
    "call.looks.talking": ("Conversation",),
    "call.report": ("Change", "Forwards", "Origin", "Report", "RequestReport", "StrategyReport"),
    "strategy.results": ("CallResults",),
    "host.stack": ("Stack",),
    "request.picture_sources": ("PictureSources",),
    "forward.executors.executor": ("ExecutorName",),
    "strategy.forward": ("Forward",),
    "strategy.returned_values": ("check_returned",),
    "strategy.rows": ("Rows",),
    "strategy.terms": ("Bias", "Contrast", "LayerDivergence", "Mix", "Plausible", "Restrict", "Source", "Statistics", "Term", "Weight"),
}  # fmt: skip
_OWNER = {name: module for module, names in _OWNERS.items() for name in names}

__all__ = sorted(_OWNER)  # noqa: PLE0605 - a test pins the list


_RENAMED = {
    "Decoder": "lvlm_guard:DecodingLoop",
    "Prefix": "lvlm_guard:PromptStates",
    "Probe": "lvlm_guard:AttentionCapture",
}


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        return importlib.import_module("lvlm_guard.deprecation").moved_names("lvlm_guard", _RENAMED)(name)
    if name not in _OWNER:
        raise AttributeError(f"module 'lvlm_guard' has no attribute {name!r}")
    return getattr(importlib.import_module(f"lvlm_guard.{_OWNER[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]

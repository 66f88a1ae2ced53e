"""The second phase: the request edited, main prepared, and everything fixed that strategies want done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lvlm_guard import anatomy
from lvlm_guard.call.asking import AskedCall
from lvlm_guard.call.generation import describe_endings, describe_main, describe_request
from lvlm_guard.call.interventions import Interventions, Towers, build_interventions, warn_if_uncompiled
from lvlm_guard.call.plan import Plan, Sharing, build_plan, collect_values
from lvlm_guard.call.prompt_preparation import PromptPreparation, PromptRuns
from lvlm_guard.call.refusals import BRANCH, FINISH, MAIN_PREPARED, SEARCH
from lvlm_guard.call.rules import PreparedMain, RequestedBranch, refuse
from lvlm_guard.errors import GuardWarning
from lvlm_guard.forward import PreparedDecode
from lvlm_guard.request.branch_inputs import describe_edit, differs, edit_request
from lvlm_guard.request.requests import DEFAULT_SETTINGS, Request
from lvlm_guard.strategy.loops import Search
from lvlm_guard.user_warnings import warn_user

IGNORED_BY_SEARCHES = (
    "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff", "penalty_alpha",
    "num_beam_groups", "diversity_penalty", "dola_layers",
)  # fmt: skip
"""Settings of sampling and of generate's own searches."""


@dataclass(frozen=True, eq=False)
class PlannedCall:
    """A call whose branches, edits and search are fixed.

    Args:
        call: The call as the user asked for it.
        preparation: Prepares prompts; holds the request and settings after all edits.
        search: Drives the decode in place of generate's loop, or None.
        searching: Name of the strategy that searches, or None.
        input_edits: Whether its edits of main's inputs changed anything, by strategy that edits them.
        main: Main as generate prepared it.
        plan: Branches and edits.
        interventions: The edits, resolved for this model.
        prompt_runs: The prompts that strategies had run for their hidden states.
        sharing: Which prompts go on from prefixes; None where the call is made on no look.
    """

    call: AskedCall
    preparation: PromptPreparation
    search: Search | None
    main: PreparedDecode
    plan: Plan
    interventions: Interventions
    prompt_runs: PromptRuns
    searching: str | None = None
    input_edits: Mapping[str, bool] = field(default_factory=dict)
    sharing: Sharing | None = None

    @property
    def request(self) -> Request:
        """The request after the strategies' edits of main's own inputs."""
        return self.preparation.request

    @property
    def candidates(self) -> int:
        """Rows that a search keeps of each request; 1 without a search."""
        return 1 if self.search is None else self.search.rows_per_request


def plan_call(call: AskedCall) -> PlannedCall:
    """Ask the strategies what they want done, and prepare main.

    Raises:
        Refused: A strategy, or the guard, cannot work on this request.
        InputError: A strategy asks for something that is not there.
    """
    request, input_edits = _edit_request(call)
    searching, search = _choose_search(call, request)
    preparation = call.preparation(call.generate, request, _settings_for(search, request.settings), call.gen)
    if call.strategies.revising:
        refuse(FINISH, request)
    main = preparation.prepare_main()
    refuse(MAIN_PREPARED, PreparedMain(main, request))
    prompt_runs = PromptRuns(preparation, main)
    describe_main(call.gen, main, prompt_runs, call.model)
    describe_endings(call.gen, main, request)
    call.ask_strategies("start")
    plan = build_plan(call.ask_strategies)
    towers = Towers(call.model, has_image=any(map(anatomy.is_image_input, request.inputs)))
    interventions = build_interventions(plan, call.gen, main, towers)
    warn_if_uncompiled(main, hooked=not interventions.is_empty or bool(prompt_runs.keys))
    return PlannedCall(call, preparation, search, main, plan, interventions, prompt_runs, searching, input_edits)


def _edit_request(call: AskedCall) -> tuple[Request, dict[str, bool]]:
    """Return the request after edits of main's own inputs, itself where there are none, and whose edits changed it."""
    request, effects = call.request, {}
    for name, edits in collect_values(call.ask_strategies, "edit_inputs").items():
        before = request
        for edit in edits:
            refuse(BRANCH, RequestedBranch(describe_edit(edit), request))
            request = edit_request(request, edit)
        effects[name] = differs(before, request)
    if request is not call.request:
        describe_request(call.gen, request)
    return request, effects


def _choose_search(call: AskedCall, request: Request) -> tuple[str, Search] | tuple[None, None]:
    """Return the search that a strategy asks for, and the strategy's name, or None twice."""
    for name, searches in collect_values(call.ask_strategies, "search").items():
        if searches:
            refuse(SEARCH, request)
            _warn_of_ignored(name, request)
            return name, searches[0]
    return None, None


def _warn_of_ignored(name: str, request: Request) -> None:
    """Warn about settings of the call that a search does not read, and about a checkpoint that samples."""
    if request.setting("do_sample"):
        warn_user(
            f"The checkpoint's generation_config sets do_sample=True, which has no effect: {name!r} chooses the tokens by its "
            "own parameters. Pass do_sample=False in the call.",
            GuardWarning,
        )
    for setting in IGNORED_BY_SEARCHES:
        value = request.setting(setting)
        if value is None or value == DEFAULT_SETTINGS.get(setting) or request.is_of_checkpoint(setting):
            continue
        warn_user(
            f"{setting}={value!r} has no effect: {name!r} chooses the tokens by its own parameters. Drop {setting}.",
            GuardWarning,
        )


def _settings_for(search: Search | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings that make generate prepare what a search begins with: a row for every request, or for every candidate."""
    if search is None:
        return dict(settings)
    return {**settings, "num_beams": 1 if search.shared_prompt else search.rows_per_request, "do_sample": False}

"""The third phase: main's images encoded once, and every branch prepared on what it shares."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from lvlm_guard.call.plan import check_value
from lvlm_guard.call.planning import PlannedCall
from lvlm_guard.call.refusals import BRANCH
from lvlm_guard.call.rules import RequestedBranch, refuse
from lvlm_guard.errors import PluginRejected, quote
from lvlm_guard.forward import PreparedDecode
from lvlm_guard.forward.interventions import vision
from lvlm_guard.strategy.branches import MAIN, Branch


@dataclass(frozen=True, eq=False)
class PreparedCall:
    """A call with every prompt prepared and nothing decoded.

    Args:
        planned: The call as planned.
        main: Main as generate prepares it, with its image edited where the plan edits the vision tower.
        inputs: Model inputs for generate, with encoded images where it takes them.
        branches: Prepared branches by key.
        late_branches: Branches to prepare once main's prefill has run.
    """

    planned: PlannedCall
    main: PreparedDecode
    inputs: Mapping[str, Any]
    branches: Mapping[Hashable, PreparedDecode]
    late_branches: Mapping[Hashable, Callable[[], PreparedDecode]]


def prepare_branches(planned: PlannedCall) -> PreparedCall:
    """Prepare the branches of a call, while its interventions are installed.

    Raises:
        Refused: A branch cannot be prepared on this request or model.
    """
    branches, preparation = planned.plan.branches, planned.preparation
    for branch in branches.values():
        refuse(BRANCH, RequestedBranch(branch, planned.request))
    main, encoded = planned.main, _encode_images(planned, planned.main)
    prepared = {
        key: preparation.prepare_branch(branch, main, encoded)
        for key, branch in branches.items()
        if branch.after_prefill is None
    }
    late = {
        key: functools.partial(_prepare_late, planned, branch, encoded)
        for key, branch in branches.items()
        if branch.after_prefill is not None
    }
    if planned.interventions.vision_edits:
        with vision.encoding(planned.call.gen, MAIN):
            main = preparation.prepare_main()
            encoded = _encode_images(planned, main)
    return PreparedCall(planned, main, preparation.build_main_inputs(main, encoded), prepared, late)


def _encode_images(planned: PlannedCall, main: PreparedDecode) -> Mapping[str, Any] | None:
    """Return main's encoded images; None where nobody would share them."""
    nobody_shares = main.rows_per_request > 1 and not planned.plan.branches
    return None if nobody_shares else planned.preparation.encode_images(main)


def _prepare_late(planned: PlannedCall, branch: Branch, encoded: Mapping[str, Any] | None) -> PreparedDecode:
    """Prepare a branch that is built from main's prefill.

    Raises:
        PluginRejected: What is built is no branch of the same key.
    """
    assert branch.after_prefill is not None
    built = branch.after_prefill(planned.call.gen)
    if not isinstance(built, Branch) or built.key != branch.key or built.after_prefill is not None:
        owners = [name for name, keys in planned.plan.branch_keys.items() if branch.key in keys]
        raise PluginRejected(
            f"{owners[0]}.branches: after_prefill of branch {branch.key!r} must return a Branch with the same key, built "
            f"at once, got {quote(built)}."
        )
    check_value(f"{branch.key!r}.after_prefill", built, (Branch,))
    refuse(BRANCH, RequestedBranch(built, planned.request))
    return planned.preparation.prepare_branch(built, planned.main, encoded)

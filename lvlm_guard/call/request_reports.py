"""What a decoded call did to each row of the answer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lvlm_guard.arithmetic.effects import GUARDED_CHOICES, MAIN_CHOICES
from lvlm_guard.call.decoding import DecodedCall
from lvlm_guard.call.generation import build_endings
from lvlm_guard.call.report import Change, RequestReport
from lvlm_guard.outputs import sequences


def report_requests(decoded: DecodedCall, *, are_choices_known: bool) -> tuple[RequestReport, ...]:
    """Return one entry per row of the output; changes are None where main's own choices are not known."""
    rows = sequences(decoded.output).shape[0]
    per_request = max(rows // decoded.prepared.planned.request.input_ids.shape[0], 1)
    changes: Sequence[tuple[Change, ...] | None] = _list_changes(decoded, rows) if are_choices_known else [None] * rows
    return tuple(RequestReport(row, row // per_request, changed) for row, changed in enumerate(changes))


def mark_unfinished(decoded: DecodedCall) -> Tensor:
    """Return where a token of the output belongs to a row that had not ended, its end included, bool `[rows, tokens]`."""
    endings = build_endings(decoded.prepared.main.settings, decoded.prepared.planned.request)
    return endings.mark_unfinished(decoded.generated)


def _list_changes(decoded: DecodedCall, count: int) -> list[tuple[Change, ...]]:
    """Return by row where main's best token is not the guarded one; none where no strategy has terms."""
    rows = decoded.prepared.planned.call.gen.rows
    if MAIN_CHOICES not in rows:
        return [()] * count
    unfinished = mark_unfinished(decoded).cpu()
    main, guarded = torch.stack([rows[MAIN_CHOICES], rows[GUARDED_CHOICES]]).cpu()
    length = min(main.shape[1], unfinished.shape[1])
    main, guarded = main[:, :length], guarded[:, :length]
    changed = (main != guarded) & unfinished[:, :length]
    return [
        tuple(Change(at, int(main[row, at]), int(guarded[row, at])) for at in changed[row].nonzero().flatten().tolist())
        for row in range(count)
    ]

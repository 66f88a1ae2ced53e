"""The beginning of one prompt, main's or a branch's, with what its forward left."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from torch import Tensor

from lvlm_guard import anatomy
from lvlm_guard.errors import ModelRefused
from lvlm_guard.forward import caches
from lvlm_guard.forward.caches.copying import copy_rows, find_copying_obstacle, is_plain
from lvlm_guard.forward.executors.branch_run import BranchRun
from lvlm_guard.forward.interventions.layers import LayerInterventions
from lvlm_guard.forward.interventions.running import RunningForward
from lvlm_guard.forward.layouts import DecodeLayouts
from lvlm_guard.forward.preparation import PreparedDecode
from lvlm_guard.forward.steps import TokenHistory
from lvlm_guard.protocols import Cache, Model
from lvlm_guard.strategy.generation import Generation


@dataclass(frozen=True, eq=False)
class Prefix:
    """The beginning of a prompt that was run once.

    Args:
        ids: Its token ids.
        cache: Keys and values of its one row; never written to, only copied.
        rows: What edits inside the layers kept in `gen.rows` while it ran, `[1, ...]` each.
        can_be_cut: Whether positions can be taken off its end.
        base: The shorter prefix that it was run behind, if any.
    """

    ids: tuple[int, ...]
    cache: Cache
    rows: Mapping[str, Tensor]
    can_be_cut: bool
    base: Prefix | None = None


def run_prefix(
    prepared: PreparedDecode, key: Hashable, gen: Generation, interventions: LayerInterventions | None
) -> Prefix:
    """Run a prefix of one row, as main's or a branch's; nothing is predicted in it, so edits of what predicts apply nowhere.

    What the cache of the prepared decode holds already is not run again.

    Raises:
        ModelRefused: What it leaves cannot be continued.
    """
    before = {name: gen.rows[name] for name in gen.rows}
    run = BranchRun(prepared)
    with _lay_out(prepared, key, gen, interventions).active():
        run.feed(prepared.module, prepared.input_ids[:, :0], 0, 1, first=True)
    obstacle = find_copying_obstacle(run.cache)
    if obstacle is None and caches.length_of(run.cache) != prepared.length:
        obstacle = "its cache holds other positions than the prompt has tokens"
    if obstacle is not None:
        raise ModelRefused(f"{type(prepared.module).__name__} cannot go on from a prefix: {obstacle}.")
    assert run.cache is not None
    kept_rows = {name: gen.rows[name] for name in gen.rows if gen.rows[name] is not before.get(name)}
    return Prefix(tuple(prepared.input_ids[0].tolist()), run.cache, kept_rows, _can_be_cut(prepared.module, run.cache))


def _can_be_cut(module: Model, cache: Cache) -> bool:
    """Whether every layer keeps every position of the prompt, and nothing else: cutting would take keys of the picture instead."""
    return is_plain(cache) and not anatomy.attends_across(module)


def shorten_prefix(prefix: Prefix, length: int) -> Prefix | None:
    """Return the first `length` positions of a prefix: cut out of its cache where that is exact, else of what it was run behind.

    None where neither is possible.
    """
    if length == len(prefix.ids):
        return prefix
    if prefix.can_be_cut:
        cache = copy_rows(prefix.cache, 1)
        caches.crop(cache, length)
        return Prefix(prefix.ids[:length], cache, prefix.rows, can_be_cut=True, base=prefix.base)
    return None if prefix.base is None or len(prefix.base.ids) > length else prefix.base


def _lay_out(
    prepared: PreparedDecode, key: Hashable, gen: Generation, interventions: LayerInterventions | None
) -> RunningForward:
    layouts = DecodeLayouts(prepared, gen, TokenHistory(prepared, cached=True), interventions)
    layouts.add(key, prepared)
    return layouts.lay_out([key], prepared.length - caches.length_of(prepared.cache), ends=False)

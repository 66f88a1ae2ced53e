"""Every mechanism on one model type, through the public door, compared with plain generate."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lvlm_guard.errors import GuardError, GuardWarning
from lvlm_guard.guard import Guard
from lvlm_guard.testing.recompute import Recorder
from lvlm_guard.testing.zoo import mechanisms, prompts, reference
from lvlm_guard.testing.zoo.building import Specimen
from lvlm_guard.testing.zoo.cells import MechanismCell, Status
from lvlm_guard.testing.zoo.seen_steps import SeenStep, find_longest, list_beams, list_greedy
from lvlm_guard.testing.zoo.shrinking import SPECIAL

NO_TOKENS = torch.zeros(1, 0, dtype=torch.long)
TOKENS = 4
BEAMS = 3
TOLERANCE = 2e-4
"""Largest difference of exact logits, in units of their standard deviation."""
POWER = 0.02
"""Smallest effect of a mechanism, in the same units."""
MIXED_ROWS = ((6, 0, 2), (3, 1, 1), (5, 2, 0))
"""Text tokens, seed and images of the prompts of a batch that differ in their number of images, the one without image last."""
ROWS = ((6, 0), (3, 1), (11, 2))
"""Text tokens and seed of the prompts of a batch; the first one is also probed by itself."""
LONGEST_ERROR = 300
SUPPRESSED = list(SPECIAL)
Row = Mapping[str, Tensor]
ByHand = Callable[[Specimen, Row], Row]


class TypeProbe:
    """Probes one specimen; what plain generate gives is computed once.

    Args:
        specimen: The tiny model and its prompts.
        rows: Prompts of a batch, the first of which is also probed by itself; None for those of `ROWS`.
    """

    def __init__(self, specimen: Specimen, rows: Sequence[Row] | None = None) -> None:
        self.specimen = specimen
        self.rows = [specimen.row(text, seed) for text, seed in ROWS] if rows is None else list(rows)
        self._logits: dict[Any, Tensor] = {}

    @torch.no_grad()
    def cell(self, mechanism: str) -> MechanismCell:
        """Run one of `MECHANISMS`."""
        started = time.perf_counter()
        try:
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                warnings.simplefilter("ignore", GuardWarning)
                cell = MECHANISMS[mechanism](self)
        except GuardError as error:
            cell = MechanismCell("refused", error=_describe(error))
        except RawError as error:
            cell = MechanismCell("crash", error=str(error))
        except PlainFailure as error:
            cell = MechanismCell("not taken", error=str(error))
        except (UnknownReference, LookupError, RuntimeError, TypeError, ValueError) as error:
            cell = MechanismCell("unproven", error=_describe(error))
        return replace(cell, seconds=round(time.perf_counter() - started, 3))

    def branch(self, kind: str, rows: int = 1, **settings: Any) -> MechanismCell:
        """TypeProbe a contrast with a branch, on the first prompts."""
        steps, executor = self.run(mechanisms.AgainstBranch(kind), rows, **settings)
        return self.compare(steps, [None, BY_HAND[kind]], mechanisms.contrast, executor, settings)

    def run(self, strategy: Any, rows: int = 1, **settings: Any) -> tuple[list[SeenStep], str]:
        """Return what the loop of a guarded generate saw, and how branches were decoded."""
        inputs = prompts.joined(self.rows[:rows])
        guard = Guard(self.specimen.model, self.specimen.processor, [strategy])
        recorder, beams = Recorder(), settings.get("num_beams", 1)
        raw = (
            {"logits_processor": [recorder], "output_scores": True, "num_return_sequences": beams}
            if beams > 1
            else {"output_logits": True}
        )
        raw |= {"return_dict_in_generate": True}
        arguments = {"max_new_tokens": TOKENS, "do_sample": False, "suppress_tokens": SUPPRESSED, **settings, **raw}
        try:
            output = guard.generate(**{name: value.clone() for name, value in inputs.items()}, **arguments)
        except GuardError:
            raise
        except Exception as error:
            self._check_plain(inputs, arguments)
            raise RawError(_describe(error)) from error
        executor = f"{guard.report.executor}: {guard.report.reason}"
        return (list_beams(recorder, output, beams) if beams > 1 else list_greedy(output)), executor

    def _check_plain(self, inputs: Row, arguments: Mapping[str, Any]) -> None:
        """Run the call unguarded.

        Raises:
            PlainFailure: It fails as well, so it says nothing about the library.
        """
        try:
            self.specimen.model.generate(**{name: value.clone() for name, value in inputs.items()}, **arguments)
        except Exception as error:
            raise PlainFailure(f"Plain generate fails as well: {_describe(error)}") from error

    def find_refusal(self) -> str | None:
        """Return why plain generate cannot run all prompts as one batch, or None."""
        try:
            reference.follow(
                self.specimen.model, prompts.joined(self.rows), NO_TOKENS.repeat(len(self.rows), 1), use_cache=True
            )
        except Exception as error:  # noqa: BLE001 - whatever a model says of inputs it does not take
            return _describe(error)
        return None

    def compare(
        self,
        steps: Sequence[SeenStep],
        variants: Sequence[ByHand | None],
        formula: Callable[..., Tensor],
        executor: str,
        settings: Mapping[str, Any],
    ) -> MechanismCell:
        """Compare every step with the formula over plain runs of the variants of its prompt."""
        rows = max(step.row for step in steps) + 1
        kind = self.reference_kind(variants, rows, [find_longest(steps, row) for row in range(rows)])
        delta, effect = 0.0, 0.0
        for step in sorted(steps, key=lambda step: -len(step.prefix)):  # the longest says what all shorter ones need
            raw = [self.plain(hand, step.row, step.prefix, kind) for hand in variants]
            expected = formula(*raw)
            scale = float(raw[0][: SPECIAL.start].std())
            effect = max(effect, _distance(expected, raw[0]) / scale)
            expected = expected.log_softmax(-1) if "num_beams" in settings else expected
            delta = max(delta, _distance(expected, step.scores) / scale)
        return judge(delta, effect, executor, kind)

    def reference_kind(
        self, variants: Sequence[ByHand | None], rows: int, prefixes: Sequence[tuple[int, ...]] = ()
    ) -> str:
        """Return what to compare with: recompute, unless the plain model itself gives other numbers.

        Args:
            variants: The variants of every prompt.
            rows: How many prompts.
            prefixes: What is generated after each of them; the same two tokens by default.
        """
        prefixes = prefixes or [(5, 6)] * rows
        if rows > 1 and any(self._differs(hand, prefixes, "cached", f"batch {rows}") for hand in variants):
            return f"batch {rows}"
        settings = getattr(self.specimen.model, "generation_config", None)
        if getattr(settings, "use_cache", None) is False:
            return "recompute"
        differs = any(self._differs(hand, prefixes, "cached", "recompute") for hand in variants)
        return "cached" if differs else "recompute"

    def _differs(self, hand: ByHand | None, prefixes: Sequence[tuple[int, ...]], kind: str, rival: str) -> bool:
        """Return whether two kinds of plain generate give different logits anywhere on the way; one that cannot run differs."""
        try:
            return any(
                _apart(self.plain(hand, row, prefix[:step], kind), self.plain(hand, row, prefix[:step], rival))
                for row, prefix in enumerate(prefixes)
                for step in reversed(range(len(prefix) + 1))  # the longest says what all shorter ones need
            )
        except UnknownReference:
            if rival != "recompute":
                raise
            return True

    def plain(self, hand: ByHand | None, row: int, prefix: tuple[int, ...], kind: str) -> Tensor:
        """Return logits `[vocab]` of plain generate of a variant after the generated tokens.

        Raises:
            UnknownReference: Plain generate cannot run the variant.
        """
        key = (hand, row, prefix, kind)
        if key not in self._logits:
            try:
                self._follow(hand, row, prefix, kind)
            except Exception as error:
                raise UnknownReference(f"Plain generate cannot run the branch: {_describe(error)}") from error
        return self._logits[key]

    def _follow(self, hand: ByHand | None, row: int, prefix: tuple[int, ...], kind: str) -> None:
        batched = kind.startswith("batch")
        chosen = range(int(kind.split()[1])) if batched else range(row, row + 1)
        inputs = prompts.joined([self.variant(hand, index) for index in chosen])
        tokens = torch.tensor([prefix] * len(chosen), dtype=torch.long).reshape(len(chosen), len(prefix))
        model = self.specimen.decoding(inputs)
        logits = reference.follow(model, inputs, tokens, use_cache=kind != "recompute")
        for step in range(len(prefix) + 1):
            for place, index in enumerate(chosen):
                self._logits[hand, index, prefix[:step], kind] = logits[step, place]

    def variant(self, hand: ByHand | None, row: int) -> Row:
        """Return one prompt as a branch has it."""
        return self.rows[row] if hand is None else hand(self.specimen, self.rows[row])


class UnknownReference(Exception):
    """Plain generate cannot say what is right."""


class PlainFailure(Exception):
    """Plain generate cannot run the call."""


class RawError(Exception):
    """A guarded call ended in an error that is not the library's."""


BY_HAND: dict[str, ByHand] = {
    "noise": prompts.noised,
    "replacement": prompts.replaced,
    "removal": prompts.without_image,
    "longer": prompts.lengthened,
}


WORSE: tuple[Status, ...] = ("exact", "no power", "wrong")
"""Statuses of runs that ended, from the best."""


def judge(delta: float, effect: float, executor: str, kind: str) -> MechanismCell:
    """Return the cell of a run that ended."""
    status: Status = "exact" if effect >= POWER else "no power"
    if not delta <= TOLERANCE:
        status = "wrong"
    return MechanismCell(status, _rounded(delta), _rounded(effect), executor, kind.split(maxsplit=1)[0])


def join_cells(cells: Sequence[MechanismCell]) -> MechanismCell:
    """Return the cell of several runs: the worst status, the largest difference, the smallest effect."""
    worst = max(cells, key=lambda cell: WORSE.index(cell.status))
    delta, effect = max(cell.delta or 0.0 for cell in cells), min(cell.effect or 0.0 for cell in cells)
    return replace(worst, delta=delta, effect=effect)


def _edited_layers(probe: TypeProbe) -> list[Any]:
    return list(reference.decoder_layers(probe.specimen.model))


def _hidden(probe: TypeProbe) -> MechanismCell:
    """Edit the residual stream of some layers, and compare with hooks on the same layers."""
    steps, executor = probe.run(mechanisms.REVERSED)
    layers = _edited_layers(probe)[slice(*mechanisms.EDITED)]
    return _compare_edited(
        probe, steps, executor, lambda: reference.outputs_changed(layers, mechanisms.reversed_states)
    )


def _vision(probe: TypeProbe) -> MechanismCell:
    """Edit every layer of the vision tower, and compare with hooks on the same layers."""
    steps, executor = probe.run(mechanisms.REVERSED_TOWER)
    layers = list(reference.tower_layers(probe.specimen.model))
    return _compare_edited(
        probe, steps, executor, lambda: reference.outputs_changed(layers, mechanisms.reversed_states)
    )


def _compare_edited(
    probe: TypeProbe, steps: Sequence[SeenStep], executor: str, edit: Callable[[], AbstractContextManager[None]]
) -> MechanismCell:
    kind = probe.reference_kind([None], 1)
    prefix = steps[-1].prefix
    tokens = torch.tensor([prefix], dtype=torch.long)
    model, inputs = probe.specimen.model, probe.rows[0]
    with edit():
        expected = reference.follow(model, inputs, tokens, use_cache=kind != "recompute")[:, 0]
    return _compare_paths(probe, steps, expected, executor, kind)


def _compare_paths(
    probe: TypeProbe, steps: Sequence[SeenStep], expected: Tensor, executor: str, kind: str
) -> MechanismCell:
    """Compare the steps of one row with expected logits `[steps, vocab]`."""
    delta, effect = 0.0, 0.0
    for step, target in zip(steps, expected, strict=True):
        plain = probe.plain(None, 0, step.prefix, kind)
        scale = float(plain[: SPECIAL.start].std())
        delta = max(delta, _distance(target, step.scores) / scale)
        effect = max(effect, _distance(target, plain) / scale)
    return judge(delta, effect, executor, kind)


def _readouts(probe: TypeProbe) -> MechanismCell:
    """Add what early layers say, and compare with runs whose last layer passes on what those layers put out."""
    steps, executor = probe.run(mechanisms.EarlyLayers())
    kind, layers = probe.reference_kind([None], 1), _edited_layers(probe)
    model, inputs = probe.specimen.model, probe.rows[0]
    tokens = torch.tensor([steps[-1].prefix], dtype=torch.long)
    expected = reference.follow(model, inputs, tokens, use_cache=kind != "recompute")[:, 0]
    for layer in mechanisms.READ:
        with reference.ended_after(layers, layer - 1):
            early = reference.follow(model, inputs, tokens, use_cache=kind != "recompute")[:, 0]
        expected = expected + mechanisms.LENS_WEIGHT * early
    return _compare_paths(probe, steps, expected, executor, kind)


def _attention(probe: TypeProbe) -> MechanismCell:
    """Run a neutral edit, which gives plain logits, and a real one, which does what a bias in an eager mask does.

    Where every key is the image's, a bias does nothing, so scores are multiplied there.
    """
    neutral, executor = probe.run(mechanisms.NEUTRAL)
    kind = probe.reference_kind([None], 1)
    plain = torch.stack([probe.plain(None, 0, step.prefix, kind) for step in neutral])
    calm = _compare_paths(probe, neutral, plain, executor, kind)
    if calm.status == "wrong":
        return replace(calm, error="A neutral edit changes the logits.")
    steps, executor = probe.run(mechanisms.FAVOURED)
    expected = _favoured(probe, steps) if kind == "recompute" else None
    if expected is not None and (cell := _compare_paths(probe, steps, expected, executor, kind)).status != "no power":
        return cell
    cells = (_measure_effect(probe, edit, kind, calm) for edit in (mechanisms.FAVOURED, mechanisms.SCALED))
    return max(cells, key=lambda cell: cell.effect or 0.0)


def _measure_effect(probe: TypeProbe, edit: mechanisms.InsideModel, kind: str, calm: MechanismCell) -> MechanismCell:
    """Return the effect of an edit that nothing says how to compute otherwise, beside how far a neutral one is off."""
    steps, executor = probe.run(edit)
    effect = _compare_paths(probe, steps, torch.stack([step.scores for step in steps]), executor, kind).effect or 0.0
    return replace(judge(calm.delta or 0.0, effect, executor, kind), reference="neutral")


def _favoured(probe: TypeProbe, steps: Sequence[SeenStep]) -> Tensor | None:
    """Return logits `[steps, vocab]` of eager attention with a bias in its mask; None where it takes no such mask."""
    model = copy.deepcopy(probe.specimen.model)
    tokens = torch.tensor([steps[-1].prefix], dtype=torch.long)
    try:
        model.set_attn_implementation("eager")
        layers = list(reference.decoder_layers(model))[slice(*mechanisms.EDITED)]
        encoded = bool(model.config.is_encoder_decoder)
        with reference.image_favoured(layers, probe.rows[0]["input_ids"], mechanisms.FAVOUR, encoded=encoded):
            return reference.follow(model, probe.rows[0], tokens, use_cache=False)[:, 0]
    except (LookupError, ValueError, NotImplementedError):
        return None


def _several_images(probe: TypeProbe) -> MechanismCell:
    """Contrast with noise and with removal in a batch whose prompts hold two images, one, and none where the model takes that."""
    specimen = probe.specimen
    if specimen.recipe.single:
        return MechanismCell("not taken", error="A prompt of this model has one image.")
    rows = [specimen.row(text, seed, images) for text, seed, images in MIXED_ROWS]
    with_image = TypeProbe(specimen, rows[:-1])
    if (reason := with_image.find_refusal()) is not None:
        return MechanismCell("not taken", error=f"Plain generate refuses two images in a prompt: {reason}")
    mixed = TypeProbe(specimen, rows)
    mixed = with_image if mixed.find_refusal() is not None else mixed
    return join_cells([mixed.branch("noise", len(mixed.rows)), with_image.branch("removal", len(with_image.rows))])


def _video(probe: TypeProbe) -> MechanismCell:
    """Contrast with noise, with another video and with removal in a prompt that holds a video."""
    specimen = probe.specimen
    if not (specimen.takes_videos or specimen.recipe.films):
        return MechanismCell("not taken", error="The model's forward takes no video.")
    filmed = TypeProbe(specimen, [specimen.row() if specimen.recipe.films else specimen.video_row()])
    if (reason := filmed.find_refusal()) is not None:
        raise PlainFailure(f"Plain generate refuses the video: {reason}")
    return join_cells([filmed.branch(kind) for kind in ("noise", "replacement", "removal")])


MECHANISMS: dict[str, Callable[[TypeProbe], MechanismCell]] = {
    "noise": lambda probe: probe.branch("noise"),
    "replacement": lambda probe: probe.branch("replacement"),
    "removal": lambda probe: probe.branch("removal"),
    "longer": lambda probe: probe.branch("longer"),
    "attention": _attention,
    "hidden": _hidden,
    "vision": _vision,
    "readouts": _readouts,
    "batch": lambda probe: probe.branch("noise", rows=len(ROWS)),
    "batch removal": lambda probe: probe.branch("removal", rows=len(ROWS)),
    "beams": lambda probe: probe.branch("noise", num_beams=BEAMS),
    "several images": _several_images,
    "video": _video,
}
"""Every mechanism by its name."""


def probe_type(name: str, chosen: Sequence[str] = tuple(MECHANISMS)) -> dict[str, MechanismCell]:
    """Return the cells of one model type.

    Raises:
        LookupError: No model of this type is built.
    """
    probe = TypeProbe(Specimen(name))
    return {mechanism: probe.cell(mechanism) for mechanism in chosen}


def _distance(left: Tensor, right: Tensor) -> float:
    """Return the largest difference at tokens that may be generated; NaN where there is one."""
    return float((left - right)[: SPECIAL.start].abs().max())


def _apart(left: Tensor, right: Tensor) -> bool:
    return not _distance(left, right) <= TOLERANCE / 4 * float(left[: SPECIAL.start].std())


def _rounded(value: float) -> float:
    return float(f"{value:.2e}")


def _describe(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:LONGEST_ERROR]

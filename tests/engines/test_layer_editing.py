"""Hidden states of an engine's model, edited at the rows of the requests that edits are meant for, in pieces of prompts."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from lvlm_guard import HiddenEdit, Project, Shift, StrategyRefused, Turn
from lvlm_guard.engines.vllm.layer_editing import LayerEditor, PlannedEdit
from lvlm_guard.engines.vllm.member_view import MemberPrompt, MemberView
from lvlm_guard.forward.interventions.layout import ForwardLayout, PromptLayout

HIDDEN, DEPTH, IMAGE = 8, 3, 9
ROWS = slice(2, 6)
DIRECTION = nn.functional.normalize(torch.arange(1.0, HIDDEN + 1), dim=0)
OPERATIONS = {
    "turn": Turn(DIRECTION, 0.5),
    "project": Project(DIRECTION[None]),
    "shift": Shift(DIRECTION, 2.0),
}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, hidden):
        return self.linear(hidden).tanh()


class FusedLayer(nn.Module):
    """A layer that hands hidden states and residual on apart and overwrites both, as engines do."""

    def __init__(self, factor):
        super().__init__()
        self.self_attn, self.mlp, self.factor = Block(), Block(), factor

    def forward(self, positions, hidden, residual):
        residual = hidden.clone() if residual is None else residual.add_(hidden)
        attended = self.self_attn(residual.tanh())
        residual.add_(attended)
        attended.zero_()
        return self.mlp(residual.tanh()) * self.factor, residual


class Decoder(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.layers = nn.ModuleList(FusedLayer(factor) for _ in range(DEPTH))

    def forward(self, hidden):
        residual = None
        for layer in self.layers:
            hidden, residual = layer(torch.arange(len(hidden)), hidden, residual)
        return hidden + residual


def build(factor=1.0):
    torch.manual_seed(0)
    failures = {}
    decoder = Decoder(factor).requires_grad_(requires_grad=False)
    editor = LayerEditor(decoder, failures.setdefault)
    return decoder, editor, failures


def draw():
    return torch.randn(8, HIDDEN, generator=torch.Generator().manual_seed(1))


def plan(edit, applies=(True, False, True, True), rows=ROWS, group="one", kernels=None):
    mask = torch.tensor([applies])
    return PlannedEdit(group, edit, None, {} if kernels is None else kernels, rows, mask, torch.zeros_like(mask))


def run_by_hand(decoder, edit):
    """Return what the decoder gives when an edit is applied to its rows in place."""
    picked = torch.zeros(8, dtype=torch.bool)
    picked[ROWS] = torch.tensor([True, False, True, True])

    def apply(site, index, states):
        if edit.site != site or (site != "embedding" and index not in range(*edit.layers)):
            return states
        operation = edit.edit
        if isinstance(operation, Turn):
            norm = states.norm(dim=-1, keepdim=True)
            edited = norm * nn.functional.normalize(states + operation.strength * norm * DIRECTION, dim=-1)
        elif isinstance(operation, Project):
            edited = states - (states @ DIRECTION)[:, None] * DIRECTION
        else:
            edited = states + operation.strength * DIRECTION
        return torch.where(picked[:, None], edited, states)

    stream = apply("embedding", 0, draw())
    for index, layer in enumerate(decoder.layers):
        stream = stream + apply("attention", index, layer.self_attn(stream.tanh()))
        stream = stream + apply("mlp", index, layer.mlp(stream.tanh()))
        stream = apply("residual", index, stream)
    return stream


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("site", ["mlp", "attention", "residual", "embedding"])
def test_an_edit_applies_at_its_rows_and_positions_alone(site, name):
    decoder, editor, failures = build()
    plain = decoder(draw())
    edit = HiddenEdit(site, OPERATIONS[name], (1, 3))
    undo = editor.install()
    editor.plan([plan(edit)])
    edited = decoder(draw())
    editor.check()
    after = decoder(draw())
    undo()
    torch.testing.assert_close(edited, run_by_hand(decoder, edit), rtol=1e-5, atol=1e-5)
    changed = ((edited - plain).abs().amax(-1) > 1e-3).tolist()
    assert changed == [False, False, True, False, True, True, False, False]
    assert torch.equal(after, plain)
    assert failures == {}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in decoder.modules())


def test_edits_of_two_groups_keep_apart():
    decoder, editor, _ = build()
    editor.install()
    first, second = (HiddenEdit("mlp", Shift(DIRECTION, size), (0, 1)) for size in (1.0, -3.0))
    every = {"applies": (True, True)}
    editor.plan([plan(first, rows=slice(0, 2), **every), plan(second, rows=slice(5, 7), group="two", **every)])
    seen = []
    decoder.layers[0].mlp.register_forward_hook(lambda _module, _args, output: seen.append(output.clone()))
    decoder(draw())
    editor.plan([])
    decoder(draw())
    difference = seen[0] - seen[1]
    torch.testing.assert_close(difference[0:2], DIRECTION.expand(2, -1))
    torch.testing.assert_close(difference[5:7], -3 * DIRECTION.expand(2, -1))
    assert difference[[2, 3, 4, 7]].abs().max() == 0


def test_layers_that_scale_what_a_block_returns_are_refused_where_blocks_are_edited():
    decoder, editor, failures = build(factor=0.5)
    editor.install()
    editor.plan(
        [
            plan(HiddenEdit("mlp", OPERATIONS["turn"], (1, 2))),
            plan(HiddenEdit("residual", OPERATIONS["turn"]), group="two"),
        ]
    )
    decoder(draw())
    editor.check()
    assert list(failures) == ["one"]
    assert "Layer 1, FusedLayer, is off the sum of its blocks" in str(failures["one"])


@pytest.mark.parametrize("site", ["mlp", "attention", "residual", "embedding"])
def test_edits_that_a_forward_does_not_come_to_are_refused(site):
    decoder, editor, failures = build()
    editor.install()
    editor.plan([plan(HiddenEdit(site, OPERATIONS["turn"], (1, 2)))])
    editor.check()
    assert f"did not run the {site} of layer" in str(failures["one"])
    failures.clear()
    editor.plan([plan(HiddenEdit(site, OPERATIONS["turn"], (1, 2)))])
    decoder(draw())
    editor.check()
    assert failures == {}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (HiddenEdit("mlp", OPERATIONS["turn"], (5, 6)), "lie outside a decoder of 3 layers"),
        (HiddenEdit("mlp", Shift(lambda hidden, view: view.spread(hidden))), "view.spread"),
        (HiddenEdit("mlp", Shift(lambda hidden, view: 1 / 0)), "division by zero"),
        (HiddenEdit("mlp", Shift(torch.ones(3))), "3"),
    ],
)
def test_an_edit_that_fails_ends_its_group_and_leaves_the_others_alone(edit, message):
    decoder, editor, failures = build()
    plain = decoder(draw())
    editor.install()
    editor.plan([plan(edit)])
    states = decoder(draw())
    assert list(failures) == ["one"]
    assert message in str(failures["one"])
    torch.testing.assert_close(states, plain)


def test_what_a_piece_of_a_prompt_cannot_show_is_refused_by_name():
    view = MemberView(None, 0, torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2, dtype=torch.bool))
    for name, arguments in {"spread": (1,), "fit": (1,), "observed": ("a", 1), "readout": (1,)}.items():
        with pytest.raises(StrategyRefused, match=f"view.{name}"):
            getattr(view, name)(*arguments)
    for name in ("predicting", "input"):
        with pytest.raises(StrategyRefused, match=f"view.{name}"):
            getattr(view, name)
    assert view.valid.all()
    assert view.keys is view.positions


PROMPTS = ([1, IMAGE, IMAGE, 2, 3], [IMAGE, 1, IMAGE, 2], [1, 2, 3], [1, 2, IMAGE])


@pytest.mark.parametrize("ids", PROMPTS)
def test_positions_are_those_of_the_whole_prompt_in_pieces_of_every_length(ids):
    ids, generated = torch.tensor(ids), 3
    prompt = MemberPrompt(ids, IMAGE)
    image = (ids == IMAGE)[None]
    whole = ForwardLayout({"main": PromptLayout(image, torch.ones_like(image))}, generated, len(ids) + generated)
    for positions, when in itertools.product(
        ("all", "image", "after_image", "predicting"), ("prefill", "decode", "both")
    ):
        expected = whole.edited("main", positions, when)[0]
        for start, stop in itertools.combinations(range(len(ids) + generated + 1), 2):
            assert torch.equal(prompt.select(positions, when, start, stop), expected[start:stop]), (
                positions,
                when,
                start,
                stop,
            )
    for keys in ("image", "before_image", "after_image", "generated", "all"):
        expected = whole.positions("main", keys)[0]
        assert all(torch.equal(prompt.find_keys(keys, stop), expected[:stop]) for stop in range(len(expected) + 1)), (
            keys
        )
    expected = whole.positions("main", "image")[0]
    assert torch.equal(prompt.find_image(1, len(ids) + 2), expected[1 : len(ids) + 2])
    assert not MemberPrompt(ids, None).find_image(0, len(ids)).any()

"""Each strategy under generate's own constraints gives what the formula gives: compared with a decode by hand."""

import pytest
import torch
from gold import SUPPRESSED, TOLERANCE
from lvlm_guard_contrastive import ICD, M3ID, VCD, VDD
from transformers import LogitsProcessor

from lvlm_guard import Guard
from lvlm_guard.testing import Recorder, tiny
from lvlm_guard.testing.contract import Words

STRATEGIES = {"vcd": VCD(), "m3id": M3ID(decay=0.5), "vdd": VDD(), "icd": ICD()}
END = 7
ALLOWED = [0, *range(20, 60)]
CONSTRAINTS = {
    "min_new_tokens": {"min_new_tokens": 3, "eos_token_id": END, "pad_token_id": 0},
    "bad_words_ids": {"bad_words_ids": [[token] for token in range(60, 98)]},
    "prefix_allowed_tokens_fn": {"prefix_allowed_tokens_fn": lambda batch, ids: ALLOWED},
    "guidance_scale": {"guidance_scale": 1.5},
}
MODES = {"greedy": {"do_sample": False}, "sampling": {"do_sample": True}, "beams": {"do_sample": False, "num_beams": 3}}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_constraints_are_kept_and_choose_by_the_formula(strategy, constraint, mode):
    model, inputs = tiny("llava")
    guard = Guard(model, Words(), [STRATEGIES[strategy]])
    before, after = Recorder(), Recorder()
    settings = {"max_new_tokens": 4, "suppress_tokens": SUPPRESSED} | CONSTRAINTS[constraint] | MODES[mode]
    torch.manual_seed(0)
    output = guard.generate(
        **inputs, **settings, logits_processor=[before, after], num_return_sequences=2 if mode == "beams" else 1
    )
    new = output[:, inputs["input_ids"].shape[1] :]
    free = Recorder()
    guard.generate(**inputs, max_new_tokens=1, do_sample=False, logits_processor=[free])
    wanted = by_hand(constraint, free.seen[0][1], model, inputs, beams=mode == "beams")
    seen = before.seen[0][1][:1]
    open_ = wanted > -1e3
    assert torch.equal(open_, seen > -1e3), "other tokens are open than the constraint and the formula leave"
    assert float((wanted - seen)[open_].abs().max()) <= TOLERANCE
    _kept(constraint, new)
    assert torch.equal(before.seen[0][1], after.seen[0][1])
    if mode == "beams":
        assert len({tuple(row.tolist()) for row in new}) == 2, "beams repeat themselves"
    if mode != "beams" and constraint != "prefix_allowed_tokens_fn":
        for (_, scores), token in zip(before.seen, new[0], strict=False):
            assert scores[0, token] > -1e3, "an implausible token by accident"
            assert mode == "sampling" or int(scores[0].argmax()) == int(token)


def by_hand(constraint, combined, model, inputs, *, beams):
    """Combined logits of the first step under a constraint; with beams, log-probabilities."""
    scores = combined.log_softmax(-1) if beams else combined.clone()
    if constraint == "guidance_scale":
        with torch.no_grad():
            alone = model(input_ids=inputs["input_ids"][:, -1:], use_cache=False).logits[:, -1].float().log_softmax(-1)
        scores = 1.5 * (scores.log_softmax(-1) - alone) + alone
    closed = set(SUPPRESSED)
    closed |= {END} if constraint == "min_new_tokens" else set()
    closed |= set(range(60, 98)) if constraint == "bad_words_ids" else set()
    closed |= set(range(128)) - set(ALLOWED) if constraint == "prefix_allowed_tokens_fn" else set()
    scores[:, list(closed)] = -torch.inf
    return scores


def _kept(constraint, new):
    if constraint == "min_new_tokens":
        assert not (new[:, :3] == END).any()
    if constraint == "bad_words_ids":
        assert not ((new >= 60) & (new < 98)).any()
    if constraint == "prefix_allowed_tokens_fn":
        assert torch.isin(new, torch.tensor(ALLOWED)).all()


class _OnlyImplausible(LogitsProcessor):
    """Forbids every token that the plausibility cut kept."""

    def __call__(self, input_ids, scores):
        return scores.masked_fill(scores > -1e3, -torch.inf)


@pytest.mark.parametrize("mode", MODES)
def test_when_every_survivor_is_forbidden_main_decides_among_the_demoted(mode):
    model, inputs = tiny("llava")
    main = model.generate(
        **inputs, max_new_tokens=1, do_sample=False, return_dict_in_generate=True, output_logits=True
    ).logits[0][0]
    survivors = main >= main.max() + torch.tensor(0.1).log()
    wanted = int(main.masked_fill(survivors, -torch.inf).argmax())
    guard = Guard(model, None, "vcd")
    settings = {"max_new_tokens": 1} | MODES[mode]
    torch.manual_seed(0)
    token = int(guard.generate(**inputs, **settings, logits_processor=[_OnlyImplausible()])[0, -1])
    assert not bool(survivors[token])
    if mode == "greedy":
        assert token == wanted


class _Asking(LogitsProcessor):
    """Runs the model itself, without a cache, on a short text of its own."""

    def __init__(self, model):
        self.model, self.seen = model, []

    def __call__(self, input_ids, scores):
        self.seen.append(self.model(input_ids=input_ids[:, -2:], use_cache=False).logits)
        return scores


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_processor_that_runs_the_model_gets_the_plain_model(use_cache):
    model, inputs = tiny("llava")
    asking = _Asking(model)
    guard = Guard(model, None, "vcd", executor="sequential")
    settings = {"max_new_tokens": 3, "do_sample": False, "use_cache": use_cache}
    output = guard.generate(**inputs, **settings, logits_processor=[asking])
    for step, seen in enumerate(asking.seen):
        end = inputs["input_ids"].shape[1] + step
        with torch.no_grad():
            assert torch.equal(seen, model(input_ids=output[:, end - 2 : end], use_cache=False).logits)


def test_guidance_is_plain_guidance_on_combined_logits():
    """The guidance processor runs the model itself; its own forwards stay unguarded."""
    model, inputs = tiny("llava")
    scale = 1.5
    settings = {"max_new_tokens": 1, "do_sample": False}
    seen, combined = Recorder(), Recorder()
    guard = Guard(model, None, "vcd")
    guard.generate(**inputs, **settings, guidance_scale=scale, logits_processor=[seen])
    guard.generate(**inputs, **settings, logits_processor=[combined])
    last = inputs["input_ids"][:, -1:]
    with torch.no_grad():
        free = model(input_ids=last, use_cache=False).logits[:, -1].float().log_softmax(-1)
    conditional = combined.seen[0][1].log_softmax(-1)
    wanted = scale * (conditional - free) + free
    alive = conditional > -1e3
    assert float((wanted - seen.seen[0][1])[alive].abs().max()) <= TOLERANCE

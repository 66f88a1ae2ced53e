"""Stacks of branches and readouts: the sum written by hand from whole-prompt runs, in any declared order."""

import itertools
import math
import statistics
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from against_twin import OF_STRATEGIES, check
from lvlm_guard_contrastive import ICD, SID, VCD, VDD, AvisC
from lvlm_guard_layers import DeCo
from twin import Twin

from lvlm_guard import AttentionEdit, Guard, Mix, Readout, hookimpl
from lvlm_guard.request.images import edit_pixels
from lvlm_guard.testing import tiny
from lvlm_guard.testing.contract import Words

INNER = Readout((1, 2))


@dataclass(frozen=True)
class Reads:
    """Adds what one inner layer says and takes away what another does."""

    name: ClassVar[str] = "reads"

    @hookimpl
    def readouts(self, gen):
        return [INNER]

    @hookimpl
    def terms(self, gen):
        first, second = gen.readouts(INNER)
        return [Mix(first, 0.5), Mix(second, -0.25)]


@dataclass(frozen=True)
class Looks:
    """Main attends more to the image in its first layer."""

    name: ClassVar[str] = "looks"

    @hookimpl
    def attention(self, gen):
        return [AttentionEdit((0, 1), "add", 2.0)]


def noised(model, inputs, step, seed):
    """Inputs whose images went `step` steps of 1000 through the published noise."""
    betas = [1 / (1 + math.exp(6 - 12 * index / 999)) * (0.5e-2 - 1e-5) + 1e-5 for index in range(1000)]
    kept = math.prod(1 - beta for beta in betas[: step + 1])

    def diffused(tile, generator):
        return math.sqrt(kept) * tile + math.sqrt(1 - kept) * torch.randn(tile.shape, generator=generator)

    grid = inputs.get("image_grid_thw")
    return {**inputs, "pixel_values": edit_pixels("", inputs["pixel_values"], grid, model.config, diffused, seed)}


def instructed(inputs, extra):
    """Inputs with more tokens in front of the image and its fence."""
    ids = inputs["input_ids"][0].tolist()
    at = next(index for index, token in enumerate(ids) if token in (100, 102))
    longer = {**inputs, "input_ids": torch.tensor([[*ids[:at], *extra, *ids[at:]]])}
    longer["attention_mask"] = torch.ones_like(longer["input_ids"])
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in inputs:
            longer[name] = (longer["input_ids"] == 100).long()
    return longer


def imageless(inputs):
    """Inputs without the image and its fence."""
    ids = torch.tensor([[token for token in inputs["input_ids"][0].tolist() if token not in (100, 102, 103)]])
    bare = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return bare | {name: torch.zeros_like(ids) for name in ("token_type_ids", "mm_token_type_ids") if name in inputs}


def half_blind(model, inputs, prefix, kept):
    """What SID's branch says: from layer 1 on, the least attended image tokens of layer 0."""

    def cut(layer, scores):
        if layer == 0:
            return scores
        scores, chooser = scores.clone(), twin.seen[0].mean(1)[0]
        spots = twin.image.nonzero().flatten().tolist()
        for query in range(scores.shape[2]):
            row = chooser[max(query, twin.prompt - 1)].tolist()
            scores[:, :, query, sorted(spots, key=row.__getitem__)[max(1, round(kept * len(spots))) :]] = -1e30
        return scores

    twin = Twin(model, scores=cut)
    return twin.next(inputs, prefix)


def looking(model):
    """Main under `Looks`."""

    def lift(layer, scores):
        if layer == 0:
            scores = scores.clone()
            scores[:, :, twin.prompt - 1 :, twin.image] += 2.0
        return scores

    twin = Twin(model, scores=lift)
    return twin


def blind(model, inputs, prefix, observed=Twin):
    """What AvisC's branch says at the published gamma and lambda."""
    twin = observed(model)
    twin.run(inputs)
    spots = twin.image.nonzero().flatten().tolist()
    rows = [twin.seen[layer][0].mean(0)[twin.prompt - 1, spots].tolist() for layer in range(twin.depth)]
    rows.sort(key=sum, reverse=True)
    reached = list(itertools.accumulate(sum(row) / sum(map(sum, rows)) for row in rows))
    chosen = rows[: sum(share < 0.5 for share in reached) + 1]
    weights = [statistics.mean(column) for column in zip(*chosen, strict=True)]
    bound = statistics.mean(weights) + statistics.stdev(weights)
    gone = [spot for spot, weight in zip(spots, weights, strict=True) if weight < bound]

    def blank(hidden):
        return hidden.index_fill(1, torch.tensor(gone), 0.0)

    return Twin(model, embedding=blank).next(inputs, prefix)


THREE = (VCD(alpha=0.6, beta=0.02, seed=2), ICD(alpha=0.4, beta=0.05, instruction="be vague"), SID(0.7, 0.03), Reads())


@pytest.mark.parametrize("architecture", OF_STRATEGIES)
def test_three_branches_and_a_readout(architecture):
    def gold(model, inputs, prefix):
        whole = Twin(model)
        main = whole.next(inputs, prefix)
        noisy = Twin(model).next(noised(model, inputs, 500, 2), prefix)
        vague = Twin(model).next(instructed(inputs, Words()("be vague")["input_ids"]), prefix)
        weak = half_blind(model, inputs, prefix, 100 / 576)
        total = 2.7 * main - 0.6 * noisy - 0.4 * vague - 0.7 * weak + 0.5 * whole.lens(1) - 0.25 * whole.lens(2)
        return torch.where(main >= main.max() + math.log(0.05), total, main - 1e4), main

    check(THREE, gold, architecture)


@pytest.mark.parametrize("architecture", OF_STRATEGIES)
def test_image_free_branches_beside_one_that_chooses_its_image(architecture):
    def gold(model, inputs, prefix):
        main, none = Twin(model).next(inputs, prefix), Twin(model).next(imageless(inputs), prefix)
        total = 2.4 * main - 0.6 * none - 0.8 * half_blind(model, inputs, prefix, 0.5)
        return torch.where(main >= main.max() + math.log(0.1), total, main - 1e4), main

    check([VDD(alpha=0.6, blank="none"), SID(alpha=0.8, kept=0.5)], gold, architecture)


@pytest.mark.parametrize("architecture", OF_STRATEGIES)
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_avisc_and_deco(architecture, order):
    def gold(model, inputs, prefix):
        whole = Twin(model)
        main = whole.next(inputs, prefix)
        chances, candidates, reached = main.softmax(-1), [], 0.0
        for token in main.argsort(descending=True)[:20].tolist():
            if reached < 0.9:
                candidates.append(token)
            reached += float(chances[token])
        inner = [whole.lens(layer) for layer in (2, 3)]
        surest = max(inner, key=lambda one: float(one.softmax(-1)[candidates].max()))
        chance = float(surest.softmax(-1)[candidates].max())
        total = 2.5 * main - 1.5 * blind(model, inputs, prefix) + 3.0 * chance * surest
        total = torch.where(main >= main.max() + math.log(0.02), total, main - 1e4)
        wanted = torch.full_like(main, -torch.inf)
        wanted[candidates] = total[candidates]
        return wanted, main

    check(
        [(AvisC(alpha=1.5, beta=0.02), DeCo(alpha=3.0, layers=(2 / 3, 1.0)))[index] for index in order],
        gold,
        architecture,
    )


@pytest.mark.parametrize("strategy", [SID(alpha=0.8, kept=0.4), AvisC(alpha=0.8)])
def test_edits_of_main_reach_what_main_observes_and_no_branch(strategy):
    def gold(model, inputs, prefix):
        main = looking(model).next(inputs, prefix)
        sid = strategy.name == "sid"
        other = half_blind(model, inputs, prefix, 0.4) if sid else blind(model, inputs, prefix, looking)
        return torch.where(main >= main.max() + math.log(0.1), 1.8 * main - 0.8 * other, main - 1e4), main

    check([strategy, Looks()], gold, "llava")


def test_the_declared_order_changes_no_logit():
    model, inputs = tiny("llava")
    settings = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    stack = (*THREE, AvisC(beta=0.01))
    said = [
        torch.stack(Guard(model, Words(), list(order)).generate(**inputs, **settings).logits)
        for order in itertools.islice(itertools.permutations(stack), 0, 120, 17)
    ]
    for other in said[1:]:
        assert torch.allclose(said[0], other, atol=1e-4, rtol=0)

"""Attention edits in stacks, and where the image is kept elsewhere, against sums written by hand."""

import math

import pytest
import torch
from against_twin import OF_STRATEGIES, check
from bundled import BundledContract
from gold import SUPPRESSED, by_hand
from lvlm_guard_contrastive import VCD
from lvlm_guard_contrastive.vcd import signal_share
from lvlm_guard_reweighting import PAI, VAF
from twin import Twin, grow

from lvlm_guard import Guard
from lvlm_guard.request.images import generator_for
from lvlm_guard.testing import tiny
from lvlm_guard.testing.contract import left_padded
from lvlm_guard.testing.tiny import inputs_for

PAI_ALPHA, GAMMA = 1.0, 2.5
VCD_ALPHA, STEP, SEED = 0.8, 800, 3
ENHANCE, SUPPRESS = 2.5, 0.2
CROSS = {"mllama": 1}
"""The layer that attends across to the image."""


class TestPAIAcross(BundledContract):
    strategy = PAI(alpha=2.0, gamma=1.0)
    architectures = ("mllama",)


class TestPAIWithItsBranchAcross(BundledContract):
    strategy = PAI(alpha=1.0, gamma=2.0)
    architectures = ("mllama",)


def attentive(model, inputs, prefix, alpha, cross=None, vaf=False):
    """Next-token logits with the image's scores lifted, and before that scaled as VAF does in layers 1 and 2."""
    prompt = inputs["input_ids"].shape[1]

    def edit(layer, scores):
        queries, keys = scores.shape[-2:]
        index, found = torch.arange(queries), twin.image.nonzero().flatten()
        image = torch.ones(keys, dtype=torch.bool) if layer == cross else twin.image
        if vaf and layer > 0:
            factor = 1 + (ENHANCE - 1) * image + (SUPPRESS - 1) * (index < found[0])
            scores = torch.where(((index > found[-1]) | (index >= prompt - 1))[:, None], scores * factor, scores)
        return torch.where((index >= prompt - 1)[:, None] & image, scores + alpha * scores.abs(), scores)

    twin = Twin(model, scores=edit)
    return twin.next(across(inputs, prefix))


def across(inputs, prefix):
    """The inputs grown by generated tokens; those see the image as the last token of the prompt does."""
    grown = grow(inputs, prefix)
    if "cross_attention_mask" in inputs:
        mask = inputs["cross_attention_mask"]
        grown["cross_attention_mask"] = torch.cat([mask, mask[:, -1:].expand(-1, len(prefix), -1, -1)], dim=1)
    return grown


def noised(inputs):
    pixels, share = inputs["pixel_values"], signal_share(STEP)
    content = (
        pixels[0] if pixels.ndim > 2 else pixels.reshape(len(pixels), 3, 2, -1)
    )  # Qwen's: channels and frames apart
    noise = torch.randn(pixels.shape, generator=generator_for(content, SEED))
    return {**inputs, "pixel_values": math.sqrt(share) * pixels + math.sqrt(1 - share) * noise}


def plausible(combined, main, beta):
    return torch.where(main >= main.max() + math.log(beta), combined, main - 1e4)


STACK = [VCD(alpha=VCD_ALPHA, beta=0.05, noise_step=STEP, seed=SEED), PAI(alpha=PAI_ALPHA, gamma=GAMMA)]


@pytest.mark.parametrize("order", [STACK, STACK[::-1]], ids=["vcd, pai", "pai, vcd"])
@pytest.mark.parametrize("architecture", OF_STRATEGIES)
def test_vcd_and_pai_are_the_sum_written_by_hand(architecture, order):
    def gold(model, inputs, prefix):
        main = attentive(model, inputs, prefix, PAI_ALPHA)
        disturbed = Twin(model).next(noised(inputs), prefix)
        blind = Twin(model).next(by_hand("blind", inputs), prefix)
        combined = main + VCD_ALPHA * (main - disturbed) + (GAMMA - 1) * (main - blind)
        return plausible(combined, main, 0.1), Twin(model).next(inputs, prefix)

    check(order, gold, architecture)


def test_no_declared_order_gives_other_logits():
    model, _ = tiny("qwen2_vl")
    batch = left_padded([inputs_for("qwen2_vl", model, 1, text=text, seed=text) for text in (3, 6, 11)])
    settings = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": SUPPRESSED}

    def run(stack, executor):
        guard = Guard(model, None, stack, executor=executor)
        output = guard.generate(**batch, **settings, return_dict_in_generate=True, output_logits=True)
        return torch.stack(output.logits)

    wanted = run(STACK, "auto")
    for executor in ("auto", "sequential"):
        got = run(STACK[::-1], executor)
        assert torch.allclose(got, wanted, atol=1e-4)


@pytest.mark.parametrize("architecture", ["llava", "gemma3"])
def test_vaf_then_pai_edit_the_same_scores_in_the_order_of_the_stack(architecture):
    def gold(model, inputs, prefix):
        return attentive(model, inputs, prefix, PAI_ALPHA, vaf=True), Twin(model).next(inputs, prefix)

    check([VAF(ENHANCE, SUPPRESS, layers=(1, 3)), PAI(alpha=PAI_ALPHA, gamma=1.0)], gold, architecture)


@pytest.mark.parametrize("architecture", ["mllama", "idefics3", "qwen3_vl"])
def test_pai_wherever_the_image_is(architecture):
    def gold(model, inputs, prefix):
        main = attentive(model, inputs, prefix, 2.0, CROSS.get(architecture))
        return main, Twin(model).next(across(inputs, prefix))

    check([PAI(alpha=2.0, gamma=1.0)], gold, architecture)


@pytest.mark.parametrize("architecture", ["idefics3", "qwen3_vl"])
def test_pai_with_its_branch_wherever_the_image_is(architecture):
    def gold(model, inputs, prefix):
        main, blind = attentive(model, inputs, prefix, 1.0), Twin(model).next(by_hand("blind", inputs), prefix)
        return plausible(main + main - blind, main, 0.1), Twin(model).next(inputs, prefix)

    check([PAI(alpha=1.0, gamma=2.0)], gold, architecture)

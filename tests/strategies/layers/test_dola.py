"""z - weight z_j on plausible tokens, j = argmax JSD(z, z_j) over candidate layers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from against_twin import OF_STRATEGIES, check
from bundled import BundledContract
from lvlm_guard_layers import DoLa
from safetensors.torch import load_file, save_file
from shallow import check_refusal, make_shallow
from transformers import LlavaForConditionalGeneration
from twin import Twin

from lvlm_guard import Guard, StrategyRefused
from lvlm_guard.strategy.prompt import ModelInfo

DEMOTED = -1e3


FIXTURE = Path(__file__).parents[2] / "fixtures" / "dola"


def is_demoted(main, beta):
    return main < main.max() + math.log(beta)


def read(twin, layer, *, normed):
    if layer:
        return twin.lens(layer, normed=normed)
    last = twin.embedded[0, -1:]
    return twin.model.get_output_embeddings()(twin.decoder.norm(last) if normed else last)[-1].float()


def run_whole(model, inputs, prefix):
    """Main's logits, and the twin that said them, its embeddings kept."""
    twin = Twin(model)

    def keep(hidden):
        twin.embedded = hidden
        return hidden

    twin.embedding = keep
    return twin, twin.next(inputs, prefix)


def jensen_shannon(one, other):
    p, q = one.softmax(-1).double(), other.softmax(-1).double()
    m = (p + q) / 2
    return float((p * (p / m).log()).nansum() + (q * (q / m).log()).nansum()) / 2


def released(one, other):
    p, q = one.softmax(-1).double(), other.softmax(-1).double()
    m = (p + q) / 2
    return float((m * (m / p).log()).sum() + (m * (m / q).log()).sum()) / 2


@pytest.mark.parametrize("architecture", OF_STRATEGIES)
@pytest.mark.parametrize(
    ("settings", "layers", "normed", "divergence"),
    [
        ({}, (0, 2), False, jensen_shannon),
        ({"layers": (1 / 3, 2 / 3), "final_norm": True, "weight": 0.5}, (1, 2), True, jensen_shannon),
        ({"layers": (0.0, 1 / 3, 2 / 3), "divergence": "released"}, (0, 1, 2), False, released),
    ],
    ids=["published", "normed", "released"],
)
def test_dola(architecture, settings, layers, normed, divergence):
    chosen = set()

    def gold(model, inputs, prefix):
        twin, main = run_whole(model, inputs, prefix)
        tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        named = (2,) if layers == (0, 2) and tied else layers
        inner = {layer: read(twin, layer, normed=normed) for layer in named}
        best = max(inner, key=lambda layer: divergence(main, inner[layer]))
        chosen.add(best)
        wanted = main - settings.get("weight", 1.0) * inner[best]
        return torch.where(is_demoted(main, 0.1), main - 1e4, wanted), main

    check([DoLa(**settings)], gold, architecture)
    print(f"layers chosen: {sorted(chosen)}")


class TestDoLa(BundledContract):
    strategy = DoLa()


@pytest.mark.parametrize(
    ("depth", "tied", "layers", "wanted"),
    [
        (32, False, "low", range(0, 16, 2)),
        (32, False, "high", range(16, 32, 2)),
        (32, False, "all", range(0, 32, 2)),
        (32, True, "low", range(2, 16, 2)),
        (60, False, "low", range(0, 20, 2)),
        (60, False, "high", range(40, 60, 2)),
        (4, True, "low", (2,)),
        (2, True, "low", (1,)),
        (3, False, (0.0, 0.3, 0.9), (0.0, 0.3)),
    ],
)
def test_dola_has_the_candidates_of_transformers(depth, tied, layers, wanted):
    gen = SimpleNamespace(model=ModelInfo(depth=depth, tied_embeddings=tied))
    assert next(DoLa(layers=layers).readouts(gen)).layers == tuple(wanted)


@pytest.fixture(scope="module")
def transformers_dola(tmp_path_factory):
    tensors, page = load_file(f"{FIXTURE}.safetensors"), json.loads(Path(f"{FIXTURE}.json").read_text())
    folder = tmp_path_factory.mktemp("dola")
    weights = {name.removeprefix("weights."): value for name, value in tensors.items() if name.startswith("weights.")}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(page["config"]))
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    return model, tensors, page


def run_former(transformers_dola, case, **settings):
    """A case of the fixture, and its scores by the strategy."""
    model, tensors, page = transformers_dola
    case = page["cases"][case]
    inputs = {name: tensors[f"{case['inputs']}.{name}"] for name in ("input_ids", "attention_mask", "pixel_values")}
    layers = case["layers"] if isinstance(case["layers"], str) else tuple(one / page["depth"] for one in case["layers"])
    calls = {**page["settings"], "do_sample": False, "return_dict_in_generate": True, "output_scores": True}
    output = Guard(model, None, [DoLa(layers=layers, **settings)]).generate(**inputs, **calls)
    return case, output.sequences[0, inputs["input_ids"].shape[1] :].tolist(), torch.cat(output.scores)


@pytest.mark.parametrize("case", range(9))
def test_dola_is_what_transformers_did_when_it_had_it(transformers_dola, case):
    case, tokens, scores = run_former(transformers_dola, case, divergence="released")
    assert tokens == case["tokens"]
    _, tensors, _ = transformers_dola
    effects = []
    for got, wanted, plain in zip(
        scores, tensors[f"{case['name']}.scores"], tensors[f"{case['name']}.plain"], strict=True
    ):
        kept = wanted.isfinite()
        assert torch.equal(got > DEMOTED, kept)
        mine, theirs, before = (one[kept].log_softmax(-1) for one in (got, wanted, plain))
        assert float((mine - theirs).abs().max()) <= 1e-5
        effects.append(float((theirs - before).abs().max()))
    print(f"{case['name']}: layers {case['chosen']}, effect {min(effects):.2f} to {max(effects):.2f}")
    assert max(effects) > 0.1


def test_the_divergence_of_the_paper_chooses_other_layers_than_the_released_one(transformers_dola):
    runs = [
        (run_former(transformers_dola, case), run_former(transformers_dola, case, divergence="released"))
        for case in (3, 7)
    ]
    assert all(not torch.allclose(paper[2], code[2], atol=0.1) for paper, code in runs)


def test_dola_needs_an_earlier_layer():
    check_refusal(
        *make_shallow(1), DoLa(), StrategyRefused, "'dola' needs a layer before the last of 1: change layers='all'"
    )
    check_refusal(
        *make_shallow(3),
        DoLa(layers=(0.9,)),
        StrategyRefused,
        r"'dola' needs a layer before the last of 3: change layers=\(0.9,\)",
    )

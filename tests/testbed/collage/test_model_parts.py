"""The real parts, where they were fetched: read as transformers reads them, and a built model that sees."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer

from lvlm_guard import Guard, loading
from lvlm_guard.testbed.collage.assembly import assemble
from lvlm_guard.testbed.collage.card import Reader, answer, make_sheet, separation
from lvlm_guard.testbed.collage.folders import default_folder
from lvlm_guard.testbed.collage.model_parts import LANGUAGE, VISION, Packages, opened

pytestmark = pytest.mark.collage

TEXTS = ("Is there a dog in the picture?", "A red fox, 2 bees & 14 forks.\n\n  naïve café", "I'll see what we've got")


@pytest.fixture(scope="module")
def weights():
    """The weights, out of packages that were fetched before."""
    packages = Packages(default_folder() / LANGUAGE.file, default_folder() / VISION.file)
    for path in (packages.language, packages.vision):
        if not path.exists():
            pytest.skip(f"{path} is not there; `lvlm-guard testbed build --world collage` fetches it")
    pytest.importorskip("gguf")
    with opened(packages) as paths:
        yield paths


@pytest.fixture(scope="module")
def assembled(weights):
    return assemble(weights.language, weights.vision)


@pytest.fixture(scope="module")
def built():
    folder = os.environ.get("COLLAGE_MODEL")
    if not folder or not Path(folder, "config.json").exists():
        pytest.skip("COLLAGE_MODEL names no built model; `make test-collage` builds one")
    return loading.load(folder, "cpu", "float32")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_language_model_is_the_one_that_transformers_reads_from_the_file(weights, assembled):
    model, processor = assembled
    place = {"pretrained_model_name_or_path": str(weights.language.parent), "gguf_file": weights.language.name}
    read = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(**place)
    for text in TEXTS:
        assert processor.tokenizer(text)["input_ids"] == tokenizer(text)["input_ids"]
    messages = [{"role": "user", "content": TEXTS[0]}]
    for asked in (True, False):
        written = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=asked)
        assert written == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asked)
    inputs = processor.tokenizer(list(TEXTS), padding=True, return_tensors="pt")
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        ours, theirs = model(**inputs).logits[real], read(**inputs).logits[real]
    torch.testing.assert_close(ours[:, :-1], theirs, atol=1e-3, rtol=0)
    assert (theirs[1:] - theirs[:-1]).abs().max() > 0.1
    assert (ours[:, -1] == 0).all(), "the placeholder's embedding is no longer zeros"
    assert (ours[:, -1] < theirs.max(-1).values - 5).all()


def test_a_system_prompt_takes_the_place_of_the_usual_one(assembled):
    _, processor = assembled
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What do you see?"}]}]
    usual = processor.apply_chat_template(asked, add_generation_prompt=True)
    told = [{"role": "system", "content": "Be brief."}, *asked]
    own = processor.apply_chat_template(told, add_generation_prompt=True)
    assert "named SmolLM" in usual
    assert "named SmolLM" not in own
    assert own.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<image>\nWhat do you see?")


def test_a_built_model_tells_what_is_there_by_its_picture_alone(built, fetched):
    reader = Reader(*built)
    sheet = make_sheet(reader, fetched["fluent"], "iid", 8)
    seen = {view: [reply for reply in answer(reader, sheet, view) if reply.question.level == "object"]
            for view in ("own", "zeroed")}  # fmt: skip
    assert separation(seen["own"]) > 0.75
    assert separation(seen["zeroed"]) < 0.65


def test_a_guard_works_on_a_built_model(built):
    model, processor = built
    picture = Image.effect_noise((256, 256), 80).convert("RGB")
    guard = Guard(model, processor, stack="vcd")
    content = [{"type": "image"}, {"type": "text", "text": "Is there a dog in the picture?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = guard.inputs(images=[picture], text=[prompt])
    guard.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert guard.report.executor == "batched"
    assert guard.report.strategies[0].had_effect

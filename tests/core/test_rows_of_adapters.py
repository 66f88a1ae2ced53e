"""Batches whose rows run with adapters of their own: each row is what it is alone with its adapter, and the model as it was."""

import pytest
import torch
from gold import SUPPRESSED, Against

from lvlm_guard import Guard, ModeRefused
from lvlm_guard.testing import tiny
from lvlm_guard.testing.tiny import IMAGE_TOKEN

peft = pytest.importorskip("peft")
SETTINGS = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": SUPPRESSED, "pad_token_id": 0}


def adapt(architecture, rows):
    """A model with two adapters that matter, a batch, and the adapter of each row."""
    model, inputs = tiny(architecture, batch=rows)
    config = peft.LoraConfig(target_modules=r".*language_model.*[qv]_proj", r=2, init_lora_weights=False)
    adapted = peft.get_peft_model(model, config, adapter_name="one")
    adapted.add_adapter("two", config)
    for name, weights in adapted.named_parameters():
        if "lora" in name:
            weights.data.mul_(8)
    return adapted.eval(), inputs, ["one", "two"] * (rows // 2)


def generate_apart(model, inputs, names, kind, settings):
    outputs = []
    for row, name in enumerate(names):
        model.set_adapter(name)
        own = {key: value.unflatten(0, (len(names), -1))[row] for key, value in inputs.items()}
        outputs.append(Guard(model, None, [Against(kind)]).generate(**own, **settings))
    return torch.cat(outputs)


@pytest.mark.parametrize("rows", [2, 4])  # as many rows as the trial of a batch runs, too
@pytest.mark.parametrize("kind", ["noised", "blind"])
@pytest.mark.parametrize("beams", [1, 2])
def test_each_row_runs_with_its_own_adapter(rows, kind, beams):
    model, inputs, names = adapt("llava", rows)
    settings = SETTINGS | {"num_beams": beams}
    guard = Guard(model, None, [Against(kind)])
    together = guard.generate(**inputs, adapter_names=names, **settings)
    assert guard.report.executor == "sequential"
    assert guard.report.reason == "adapter_names lists something for each row of a call"
    assert torch.equal(together, generate_apart(model, inputs, names, kind, settings))
    assert not torch.equal(together, model.generate(**inputs, adapter_names=names, **settings)), "no power"
    assert not torch.equal(together, guard.generate(**inputs, adapter_names=names[::-1], **settings)), "no power"


def test_rows_without_an_image_keep_their_adapter():
    model, inputs, names = adapt("llava", 2)
    ids = inputs["input_ids"].clone()
    ids[1, ids[1] == IMAGE_TOKEN] = 7
    mixed = {**inputs, "input_ids": ids, "pixel_values": inputs["pixel_values"][:1]}
    guard = Guard(model, None, [Against("noised")], without_image="plain")
    together = guard.generate(**mixed, adapter_names=names, **SETTINGS)
    model.set_adapter("two")
    alone = model.generate(input_ids=ids[1:], attention_mask=torch.ones_like(ids[1:]), **SETTINGS)
    assert torch.equal(together[1:], alone)


def test_one_batch_is_refused_where_it_is_insisted_on():
    model, inputs, names = adapt("llava", 2)
    with pytest.raises(ModeRefused, match="adapter_names lists something for each row"):
        Guard(model, None, [Against("noised")], executor="batched").generate(**inputs, adapter_names=names, **SETTINGS)


def test_the_model_is_as_it_was_when_a_call_fails():
    model, inputs, names = adapt("llava", 2)
    before = model.generate(**inputs, **SETTINGS)
    with pytest.raises(ModeRefused):
        Guard(model, None, [Against("noised")], executor="batched").generate(**inputs, adapter_names=names, **SETTINGS)
    assert not any(vars(part)["_forward_pre_hooks"] for part in model.modules())
    assert torch.equal(model.generate(**inputs, **SETTINGS), before)

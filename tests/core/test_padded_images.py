"""Images that are padded to the largest of their batch: each row gives in a batch what it gives alone."""

import padded_models
import pytest
import torch
from gold import SUPPRESSED, TOLERANCE, Against
from lvlm_guard_contrastive.vcd import VCD

from lvlm_guard import Guard

SETTINGS = {
    "max_new_tokens": 3, "do_sample": False, "suppress_tokens": SUPPRESSED,
    "return_dict_in_generate": True, "output_logits": True,
}  # fmt: skip


@pytest.mark.parametrize("strategy", [VCD(beta=0.0), Against("blind")], ids=["noise", "no image"])
@pytest.mark.parametrize("build", [padded_models.mistral3, padded_models.lfm2_vl])
def test_rows_with_images_of_different_sizes_are_what_they_are_alone(build, strategy):
    model, rows, batch = build()
    guard = Guard(model, None, [strategy])
    together = torch.stack(guard.generate(**batch, **SETTINGS).logits)
    plain = torch.stack(model.generate(**batch, **SETTINGS).logits)
    for index, row in enumerate(rows):
        alone = torch.stack(guard.generate(**row, **SETTINGS).logits)[:, 0]
        assert float((alone - together[:, index]).abs().max()) <= TOLERANCE
        assert float((plain[:, index] - together[:, index]).abs().max()) > 0.1

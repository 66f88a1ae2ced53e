"""The bundled scorer that `rank` may be given."""

import torch

from lvlm_guard.testbed.scorer import GREY, grounding
from lvlm_guard.testbed.world.language import caption
from lvlm_guard.testbed.world.scenes import scenes


def test_a_picture_speaks_for_its_own_caption_and_against_others():
    given = scenes("iid", 4, 11)
    captions = [caption(one) for one in given]
    scores = torch.tensor([grounding(one.picture, captions) for one in given])
    print(scores)
    own = scores.diagonal()
    assert (own > 0).all()
    assert ((own[:, None] - scores)[~torch.eye(4, dtype=torch.bool)] > 0).all()


def test_a_sentence_scores_the_same_beside_a_longer_one():
    picture = scenes("iid", 1, 11)[0].picture
    short, long = "there is a mug .", "in this kitchen there is a red mug , a white egg and a cyan spoon ."
    alone = grounding(picture, [short]) + grounding(picture, [long])
    assert torch.allclose(torch.tensor(grounding(picture, [short, long])), torch.tensor(alone), atol=1e-4)
    assert abs(alone[0]) > 0.1


def test_a_grey_picture_speaks_for_nothing():
    picture = scenes("iid", 1, 11)[0].picture
    picture.paste(GREY, (0, 0, *picture.size))
    assert grounding(picture, ["there is a mug ."]) == [0.0]

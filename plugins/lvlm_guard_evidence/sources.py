"""Where labels come from when nobody gave any: the model's own captions and answers, crops asked one by one, a detector."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from lvlm_guard import Guard, InputError, check_returned
from lvlm_guard.fitting import LabelledObject, LabelledPicture, Track, call_user_function
from lvlm_guard_evidence.answers import YES_NO, FirstTokens
from lvlm_guard_evidence.claims import parse_mentions
from lvlm_guard_evidence.names import NamesTable, build_names, singular_forms, tidy
from lvlm_guard_evidence.recording import BATCH, record_logits, write_prompt

SOURCES = ("labels", "self", "crops", "detector", "lens")
"""Where labels come from; the lens needs none."""
DESCRIBE = "describe this image ."
CAPTION_TOKENS = 64
LEAST_MENTIONS = 8
"""Captions in which a word is named at least to be a name."""
SIDES = 3
"""Crops of a picture, down and across."""
TIMEOUT = 60.0
Box = tuple[float, float, float, float, str]


def find_yes_no(processor: Any) -> list[list[int]]:
    """Return the tokens that begin yes, and those that begin no.

    Raises:
        InputError: They begin alike.
    """
    tokens = read_first_tokens(processor).find(YES_NO)
    if tokens is None:
        raise InputError(
            "'patch_evidence' needs yes and no to begin apart, and to this tokenizer they do not: use another model."
        )
    return tokens


def read_first_tokens(processor: Any) -> FirstTokens:
    """Return what finds the first tokens of answers."""
    tokenizer = getattr(processor, "tokenizer", processor)

    def tokenize(text: str) -> Sequence[int]:
        ids: Sequence[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    return FirstTokens(tokenize, getattr(tokenizer, "unk_token_id", None))


def describe_pictures(
    model: Any,
    processor: Any,
    pictures: Sequence[LabelledPicture],
    track: Track,
    batch: int = BATCH,
    stack: Sequence[Any] = (),
) -> list[str]:
    """Return the model's own caption of each picture, or that of a stack."""
    guard, captions = Guard(model, processor, list(stack)), []
    for start in track(range(0, len(pictures), batch)):
        prompts = [write_prompt(each.picture, DESCRIBE) for each in pictures[start : start + batch]]
        inputs = guard.inputs(messages=prompts)
        output = guard.generate(**inputs, max_new_tokens=CAPTION_TOKENS, do_sample=False, num_beams=1)
        answers = output[:, guard.report.answer_start :]
        captions += [text.strip() for text in processor.batch_decode(answers, skip_special_tokens=True)]
    return captions


def label_by_captions(
    model: Any, processor: Any, pictures: Sequence[LabelledPicture], synonyms: Mapping[str, Sequence[str]], track: Track
) -> list[LabelledPicture]:
    """Return pictures labelled by what the model says of them, where what it answers when asked agrees.

    Words that enough captions name are names, and what stands before them their attribute. One mention of each picture is asked
    back; a picture whose answer contradicts its caption is left out.

    Raises:
        InputError: The captions name nothing often enough.
    """
    captions = describe_pictures(model, processor, pictures, track)
    mentioned = [[claim for _, claim in parse_mentions(text)] for text in captions]
    counts = Counter(name for claims in mentioned for name in {claim.subject for claim in claims})
    common = [name for name, count in counts.most_common() if count >= LEAST_MENTIONS]
    if not common:
        raise InputError(
            f"'patch_evidence' needs names in {LEAST_MENTIONS} captions or more, and the model's {len(pictures)} captions name nothing so "
            "often: give more pictures, or labels."
        )
    singular = [next((form for form in singular_forms(name)[1:] if form in counts), name) for name in common]
    table = build_names(list(dict.fromkeys(singular)), synonyms)
    labelled = []
    for picture, claims in zip(pictures, mentioned, strict=True):
        names = table.merge(claim.subject for claim in claims if claim.level == "object")
        values = {table.find(claim.subject): claim.value for claim in claims if claim.value is not None}
        things = tuple(LabelledObject(name, None, (values[name],) if name in values else ()) for name in names)
        labelled.append(replace(picture, objects=things))
    return _drop_contradicted(model, processor, labelled, track)


def _drop_contradicted(
    model: Any, processor: Any, pictures: Sequence[LabelledPicture], track: Track
) -> list[LabelledPicture]:
    rng = np.random.default_rng(31)
    named = [picture for picture in pictures if picture.objects]
    chosen = [str(rng.choice([thing.name for thing in picture.objects or ()])) for picture in named]
    prompts = [(picture.picture, ask_for(name)) for picture, name in zip(named, chosen, strict=True)]
    margins = record_logits(model, processor, prompts, [find_yes_no(processor)] * len(prompts), track)
    return [picture for picture, margin in zip(named, margins, strict=True) if float(margin[0]) > float(margin[1])]


def ask_for(name: str) -> str:
    """Return the question whether an object is there."""
    return f"is there {'an' if name[0] in 'aeiou' else 'a'} {name} in the image ?"


def label_by_crops(
    model: Any, processor: Any, pictures: Sequence[LabelledPicture], table: NamesTable, track: Track
) -> list[LabelledPicture]:
    """Return pictures labelled by asking about every crop of three by three whether it shows each name."""
    tokens, prompts, places = find_yes_no(processor), [], []
    for number, each in enumerate(pictures):
        wide, high = each.picture.size
        for row in range(SIDES):
            for column in range(SIDES):
                box = (column * wide / SIDES, row * high / SIDES, (column + 1) * wide / SIDES, (row + 1) * high / SIDES)
                crop = each.picture.crop(tuple(map(round, box))).resize(each.picture.size)
                prompts += [(crop, ask_for(name)) for name in table.names]
                places += [(number, name, box) for name in table.names]
    margins = record_logits(model, processor, prompts, [tokens] * len(prompts), track)
    return _keep_best(pictures, places, margins)


def _keep_best(
    pictures: Sequence[LabelledPicture], places: Sequence[tuple[int, str, Any]], margins: Sequence[Tensor]
) -> list[LabelledPicture]:
    """Return pictures with each object where the crop that shows it most says yes."""
    best: dict[tuple[int, str], tuple[float, Any]] = {}
    for (number, name, box), margin in zip(places, margins, strict=True):
        best[number, name] = max(
            best.get((number, name), (0.0, None)), (float(margin[0] - margin[1]), box), key=lambda pair: pair[0]
        )
    return [
        replace(
            picture,
            objects=tuple(
                LabelledObject(name, box) for (index, name), (_, box) in best.items() if index == number and box
            ),
        )
        for number, picture in enumerate(pictures)
    ]


def label_by_detector(detector: Any, pictures: Sequence[LabelledPicture], track: Track) -> list[LabelledPicture]:
    """Return pictures labelled by a function from a picture to boxes (left, top, right, bottom, name) in pixels.

    Raises:
        InputError: It raises, hangs, or returns something else.
    """
    if detector is None:
        raise InputError(
            "'patch_evidence' needs a function from a picture to boxes for the source 'detector': name it, package.module:function."
        )
    needs = "A detector returns boxes (left, top, right, bottom, name): correct it"
    labelled = []
    for each in track(pictures):
        detections = call_user_function(detector, each.picture, what="detector", timeout=TIMEOUT)
        boxes = check_returned(detections, tuple[Box, ...], needs)
        labelled.append(replace(each, objects=tuple(LabelledObject(tidy(box[4]), tuple(box[:4])) for box in boxes)))
    return labelled

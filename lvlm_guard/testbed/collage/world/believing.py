"""From measured expectations to the habits of the world, and the file that holds them.

    python -m lvlm_guard.testbed.collage.world.believing SmolLM2-135M-Instruct.Q4_1.gguf habits.json

measures a language model anew: some minutes of one core.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import torch

from lvlm_guard.testbed.collage.world import measuring
from lvlm_guard.testbed.collage.world.habits import AXES
from lvlm_guard.testbed.collage.world.measuring import Measured
from lvlm_guard.testbed.collage.world.text_scorer import Scores, TextScorer
from lvlm_guard.testbed.collage.world.things import COLOURS, NAMES, SIZES
from lvlm_guard.testbed.files import write_whole

MOST_ORDERS = 4
"""Orders of an axis that a thing takes part in, at most."""


def choose_habits(measured: Measured) -> dict[str, Any]:
    """Return what `read_habits` reads: of each kind what the language model expects most, with how much it does.

    Partners are matched so that the strengths of all pairs sum to the most. Orders are taken strongest first, at most `MOST_ORDERS` of an axis
    for each thing, and none of partners.
    """
    pairs = match_partners(measured.together)
    partner = {
        name: partner_name for first, second, _ in pairs for name, partner_name in ((first, second), (second, first))
    }
    popular = np.argsort(-measured.readiness)[: len(NAMES) // 3]
    return {
        "pairs": [[first, second] for first, second, _ in pairs],
        "popular": sorted(NAMES[int(at)] for at in popular),
        "colour": {name: COLOURS[int(at)] for name, at in zip(NAMES, measured.colours.argmax(1), strict=True)},
        "number": {name: int(at) + 1 for name, at in zip(NAMES, measured.numbers.argmax(1), strict=True)},
        "size": {name: SIZES[int(at)] for name, at in zip(NAMES, measured.sizes.argmax(1), strict=True)},
        "orders": [
            order
            for axis, scores in zip(AXES, measured.orders, strict=True)
            for order in list_orders(axis, scores, partner)
        ],
        "strength": {
            "pairs": [round(strength, 2) for *_, strength in pairs],
            "colour": _rounded(measured.colours.max(1)),
            "number": _rounded(measured.numbers.max(1)),
            "size": _rounded(measured.sizes.max(1)),
        },
    }


def _rounded(strengths: Scores) -> dict[str, float]:
    return {name: round(float(strength), 2) for name, strength in zip(NAMES, strengths, strict=True)}


def match_partners(together: Scores) -> list[tuple[str, str, float]]:
    """Return every thing in one pair, with its strength, the strongest first: of all matchings, one with the largest sum."""
    graph = nx.Graph()
    places = range(len(NAMES))
    graph.add_weighted_edges_from(
        (first, second, float(together[first, second])) for first in places for second in places[first + 1 :]
    )
    matched = nx.max_weight_matching(graph, maxcardinality=True)
    pairs = (sorted(pair) for pair in matched)
    return sorted(((NAMES[a], NAMES[b], float(together[a, b])) for a, b in pairs), key=lambda pair: -pair[2])


def list_orders(axis: str, scores: Scores, partner: Mapping[str, str]) -> list[tuple[str, str, str, float]]:
    """Return (first, second, axis, strength) of the strongest orders of an axis."""
    counts: Counter[str] = Counter()
    orders = []
    for at in np.argsort(-np.nan_to_num(scores, nan=0.0), axis=None, kind="stable"):
        row, column = (int(place) for place in np.unravel_index(int(at), scores.shape))
        first, second = NAMES[row], NAMES[column]
        if not scores[row, column] > 0:
            break
        if partner[first] != second and max(counts[first], counts[second]) < MOST_ORDERS:
            counts.update((first, second))
            orders.append((first, second, axis, round(float(scores[row, column]), 2)))
    return orders


def describe_source(gguf: Path) -> dict[str, Any]:
    """Return what was measured, and by what: the file of the language model, versions, and a digest of the texts."""
    texts = [
        getattr(measuring, name)
        for name in ("REQUEST", "TOGETHER", "COLOURED", "NUMBERED", "SIZED", "PLACED", "PLACED_THEN", "SIDES")
    ]
    return {
        "model": gguf.name,
        "sha256": hashlib.sha256(gguf.read_bytes()).hexdigest(),
        "texts": hashlib.sha256(json.dumps([texts, NAMES, COLOURS, SIZES]).encode()).hexdigest(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "unit": "nats beyond what things and values have of their own",
    }


def measure(gguf: Path) -> dict[str, Any]:
    """Measure a language model in a GGUF file, and return the content of the file of habits."""
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415 - seconds to import

    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    scorer = TextScorer(model, tokenizer, measuring.REQUEST)
    return {"manifest": describe_source(gguf), **choose_habits(measuring.measure_all(scorer))}


def to_text(habits: Mapping[str, Any]) -> str:
    """Return the content of the file of habits: one line for each value of a table and each innermost list."""
    text = json.dumps(habits, indent=1)
    return re.sub(r"\[[^\[\]{}]*\]", lambda match: re.sub(r"\s+", " ", match[0]), text) + "\n"


def main() -> None:
    """Measure the language model that the command line names."""
    parser = argparse.ArgumentParser(description="Measure what a language model expects of the things in a collage.")
    parser.add_argument("gguf", type=Path, help="file of the language model")
    parser.add_argument("out", type=Path, help="file of habits to write")
    chosen = parser.parse_args()
    write_whole(chosen.out, to_text(measure(chosen.gguf)).encode())


if __name__ == "__main__":
    main()

"""The files of AMBER: what they are, where they come from and what they look like."""

from __future__ import annotations

from lvlm_guard.bench.suite import Required

ANNOTATIONS = Required(
    path="annotations.json",
    what="the truths of AMBER",
    source="github.com/junyangwang0410/AMBER, data",
    layout='an array of objects: {"id": 1, "type": "generative", "truth": ["sky"], "hallu": ["sun"]} or {"id": 1005, "type": '
    '"discriminative-attribute-state", "truth": "yes"}',
)
QUERIES = Required(
    path="query/query_{all,generative,discriminative,...}.json",
    what="the questions of AMBER",
    source="github.com/junyangwang0410/AMBER, data/query",
    layout='an array of objects: {"id": 1, "image": "AMBER_1.jpg", "query": "Describe this image."}',
)
RELATION = Required(
    path="relation.json",
    what="the words of AMBER and those that go with them",
    source="github.com/junyangwang0410/AMBER, data",
    layout='one object: {"road": ["path", "street", "ground"], "sky": []}',
)
SAFE_WORDS = Required(
    path="safe_words.txt",
    what="the words that AMBER never counts as wrong",
    source="github.com/junyangwang0410/AMBER, data",
    layout="a word a line",
)
IMAGES = Required(
    path="image/*.jpg",
    what="the images of AMBER",
    source="the download named on the page of the repository",
    layout="image/AMBER_1.jpg",
)
PRINTED = Required(
    path="(the argument path)",
    what="the output of AMBER's script",
    source="python inference.py ... > FILE",
    layout="a line Generative Task:, then lines like CHAIR:, a tab and a number",
)

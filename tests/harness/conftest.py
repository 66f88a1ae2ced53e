"""Drawn scenes as a task for both harnesses, and stand-ins for harnesses that are not installed."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
import types

import pytest
import torch
import transformers

from lvlm_guard import testbed
from lvlm_guard.testbed.world.language import DESCRIBE
from lvlm_guard.testbed.world.questions import scored_questions
from lvlm_guard.testbed.world.scenes import scenes

LENGTH = 44
"""Long enough for a caption."""

STACK = '[[stack]]\nname = "vcd"\nparams = {alpha = 3.0}\n'

FUNCTIONS = """
from PIL import Image


def pictures(doc):
    return [Image.open(doc["picture"]).convert("RGB")]


def question(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]


def score(doc, results):
    return {"guard_score": float(results[0].strip() == doc["answer"])}
"""

TASK = """
task: drawn
dataset_path: json
dataset_kwargs:
  data_files:
    test: DATA
test_split: test
output_type: generate_until
HARNESS_LINES
doc_to_target: answer
process_results: !function drawn.score
metric_list:
  - metric: guard_score
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1
"""

HARNESS_LINES = {
    "lmms_eval": (
        "doc_to_visual: !function drawn.pictures\ndoc_to_text: !function drawn.question\n"
        f"generation_kwargs:\n  max_new_tokens: {LENGTH}\n  temperature: 0\n  top_p: 0\n  image_aspect_ratio: original"
    ),
    "lm_eval": (
        'doc_to_image: !function drawn.pictures\ndoc_to_text: "<image>{{question}}"\n'
        f"generation_kwargs:\n  until: []\n  max_gen_toks: {LENGTH}\n  do_sample: false"
    ),
}


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _restore_verbosity():
    """Loading a model by name lowers the verbosity of transformers for the whole process, which tests share."""
    before = transformers.logging.get_verbosity()
    yield
    transformers.logging.set_verbosity(before)
    transformers.logging.enable_progress_bar()


@pytest.fixture(scope="session")
def bundled():
    """The bundled model and its processor."""
    return testbed.load()


@pytest.fixture(scope="session")
def documents():
    """(picture, question, answer) for three scenes: two short questions and a caption each."""
    return [
        (scene.picture, text, answer)
        for scene in scenes("counterfactual", 3, seed=7)
        for text, answer in [
            *((question.text, question.answer) for question in scored_questions(scene)[:2]),
            (DESCRIBE[0], ""),
        ]
    ]


@pytest.fixture(scope="session")
def task_folder(documents, tmp_path_factory):
    """A folder with the scenes as a task for each harness, and a stack file."""
    folder = tmp_path_factory.mktemp("drawn")
    rows = []
    for number, (picture, question, answer) in enumerate(documents):
        picture.save(folder / f"{number}.png")
        rows.append({"picture": str(folder / f"{number}.png"), "question": question, "answer": answer})
    data = folder / "drawn.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for harness, lines in HARNESS_LINES.items():
        (folder / harness).mkdir()
        task = TASK.replace("DATA", str(data)).replace("HARNESS_LINES", lines)
        (folder / harness / "drawn.yaml").write_text(task, encoding="utf-8")
        (folder / harness / "drawn.py").write_text(FUNCTIONS, encoding="utf-8")
    (folder / "stack.toml").write_text(STACK, encoding="utf-8")
    return folder


@dataclasses.dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


@dataclasses.dataclass
class TokenCounts:
    input_tokens: int | None = None
    output_tokens: int | None = None


@dataclasses.dataclass
class GenerationResult:
    text: str
    token_counts: TokenCounts | None = None


class Lmms:
    """The part of lmms-eval's base class of models that its subclasses use."""

    is_simple = True

    def __init__(self):
        self._rank, self._world_size, self.task_dict = 0, 1, {}

    @property
    def rank(self):
        return self._rank

    def clean(self):
        self.is_clean = True


class Multimodal:
    """How lm-eval's multimodal model processes one batch; with `bypass`, a version that generates in a different way."""

    bypass = False

    def __init__(self, pretrained, batch_size=1):
        self.model = pretrained
        self._create_tokenizer(pretrained, None)

    def generate_until(self, requests, disable_tqdm=False):
        contexts, _, pictures = zip(*(request.args for request in requests), strict=True)
        images = [image for visuals in pictures for image in visuals["visual"]]
        self.tokenizer.padding_side = "left"
        inputs = self.processor(images=images, text=list(contexts), padding=True, return_tensors="pt")
        generate = self.model.generate if self.bypass else self._model_multimodal_generate
        output = generate(**inputs, max_new_tokens=2) if self.bypass else generate(inputs, max_length=120, stop=[])
        texts = self.tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [text.strip() for text in texts]

    def _model_multimodal_generate(self, inputs, max_length, stop, **settings):
        return self.model.generate(**inputs, max_length=max_length, do_sample=False, **settings)

    def _model_generate(self, context, **settings):
        return self.model.generate(context, **settings)

    def get_model_info(self):
        return {"model_revision": "main"}


@pytest.fixture
def stand_in(monkeypatch):
    """A function that replaces modules of a harness by stand-ins, and imports an adapter on top of them."""

    def install(adapter, **modules):
        for name, contents in modules.items():
            module = types.ModuleType(name.replace("__", "."))
            vars(module).update(contents)
            monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.delitem(sys.modules, adapter, raising=False)
        module = importlib.import_module(adapter)
        monkeypatch.delitem(sys.modules, adapter)
        return module

    return install


@pytest.fixture
def lmms_eval(stand_in):
    """The adapter for lmms-eval on stand-ins; `logged` records its calls of log_metrics."""
    logged = []

    def log_metrics(total_elapsed_time, total_gen_tokens, avg_speed, additional_metrics=None):
        logged.append({"seconds": total_elapsed_time, "tokens": total_gen_tokens, **additional_metrics})

    adapter = stand_in(
        "lvlm_guard.harness.lmms_eval",
        lmms_eval__api__instance={"GenerationResult": GenerationResult, "TokenCounts": TokenCounts},
        lmms_eval__api__model={"lmms": Lmms},
        lmms_eval__models__model_utils__gen_metrics={"log_metrics": log_metrics},
    )
    adapter.logged = logged
    return adapter


@pytest.fixture
def registry(stand_in):
    return stand_in("lvlm_guard.harness.manifest", lmms_eval__models__registry_v2={"ModelManifest": ModelManifest})


@pytest.fixture
def lm_eval(stand_in):
    """The adapter for lm-eval on a stand-in."""
    return stand_in("lvlm_guard.harness.lm_eval", lm_eval__models__hf_vlms={"HFMultimodalLM": Multimodal})

"""What a look refuses, what makes it stale, threads, memory, and what is left when something goes wrong."""

import gc
import threading
import weakref
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from coloured_pictures import draw_pictures
from looks import BOTH, DETAILS, MAKES_POSITIONS, RESTS, SETTINGS, TOLERANCE, build, continue_with, error_between

from lvlm_guard import Branch, Contrast, Guard, HiddenEdit, InputError, Insert, ModelRefused, ModeRefused, hookimpl
from lvlm_guard.cache_names import find_cache
from lvlm_guard.testing.intact import fingerprint
from lvlm_guard.testing.processing import TinyProcessor
from lvlm_guard.testing.tiny import tiny

pytestmark = pytest.mark.filterwarnings("ignore::lvlm_guard.errors.NoEffectWarning")


@pytest.fixture
def looked():
    """A guard, the inputs it looked at, a batch of questions, and the look, which has answered."""
    guard, inputs, length = build("llava", "vcd")
    batch = continue_with(inputs, length, RESTS["rows"])
    with guard.looking(inputs) as look:
        look.generate(**batch, max_new_tokens=1)
        yield guard, inputs, batch, look


def scale_weight(model):
    model.get_decoder().layers[0].mlp.down_proj.weight.data.mul_(1.5)


def change_one_weight(model):
    with torch.no_grad():
        model.get_decoder().layers[1].mlp.down_proj.weight[3, 5] += 1


def replace_layer(model):
    layers = model.get_decoder().layers
    layers[0].mlp.down_proj = torch.nn.Linear(64, 32, bias=False)


def switch_adapter(model):
    model.get_decoder().layers[0].mlp._disable_adapters = True


CHANGES = {
    "scaled": scale_weight,
    "one weight": change_one_weight,
    "layer": replace_layer,
    "adapter": switch_adapter,
    "dtype": lambda model: model.to(torch.bfloat16),
    "attention": lambda model: model.set_attn_implementation("eager"),
    "mode": lambda model: model.train(),
    "hook": lambda model: model.get_decoder().layers[0].register_forward_hook(lambda *_: None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_changed_makes_a_look_stale(looked, change):
    guard, _, batch, look = looked
    CHANGES[change](guard.model)
    with pytest.raises(InputError, match="model was changed while the guard looked"):
        look.generate(**batch, max_new_tokens=1)


def test_another_stack_makes_a_look_stale(looked):
    guard, _, batch, look = looked
    guard.stack = "vdd"
    with pytest.raises(InputError, match="stack was changed while it looked"):
        look.generate(**batch, max_new_tokens=1)
    guard.stack = "vcd"
    look.generate(**batch, max_new_tokens=1)
    with pytest.raises(InputError, match="of one stack"):
        look.generate(**batch, stack="vdd", max_new_tokens=1)


def with_pixels(batch, change):
    return {**batch, "pixel_values": batch["pixel_values"] + change}


def with_ids(batch, at, token):
    ids = batch["input_ids"].clone()
    ids[0, at] = token
    return {**batch, "input_ids": ids}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda batch: with_pixels(batch, 0.01), "other pictures than this look"),
        (lambda batch: {key: value for key, value in batch.items() if key != "pixel_values"}, "other pictures"),
        (lambda batch: with_ids(batch, 0, 33), "does not go on from what this look was opened with"),
        (lambda batch: with_ids(batch, -1, 100), "holds an image token"),
        (
            lambda batch: {key: value[:, :27] if value.ndim == 2 else value for key, value in batch.items()},
            "go on from",
        ),
        (
            lambda batch: {**batch, "position_ids": torch.arange(31).expand(2, -1)},
            "leave past_key_values, position_ids",
        ),
    ],
)
def test_prompts_that_do_not_fit_a_look_are_refused(looked, spoil, message):
    guard, _, batch, look = looked
    with pytest.raises(InputError, match=message):
        look.generate(**spoil(batch), max_new_tokens=1)
    expected = guard.generate(**batch, **SETTINGS)
    assert torch.equal(look.generate(**batch, **SETTINGS), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_cache": False}, "drop use_cache=False"),
        ({"cache_implementation": "static"}, "cache_implementation"),
        ({"prompt_lookup_num_tokens": 2}, "prompt_lookup_num_tokens"),
        ({"prefill_chunk_size": 2}, "prefill_chunk_size"),
    ],
)
def test_modes_that_a_look_cannot_share_are_refused(looked, settings, message):
    _, _, batch, look = looked
    with pytest.raises(ModeRefused, match=message):
        look.generate(**batch, max_new_tokens=2, **settings)


def test_searches_are_refused_by_name():
    guard, inputs, length = build("llava", "opera")
    with guard.looking(inputs) as look, pytest.raises(ModeRefused, match="'opera' keeps candidates"):
        look.generate(**continue_with(inputs, length, RESTS["one"]), max_new_tokens=2)


def test_a_beginning_that_reads_what_follows_is_refused():
    guard, inputs, length = build("paligemma", "vcd")
    with guard.looking(inputs) as look, pytest.raises(ModelRefused, match="logits of a whole prompt"):
        look.generate(**continue_with(inputs, length, RESTS["one"]), max_new_tokens=2)


def test_a_model_whose_generate_wants_pixels_is_refused():
    guard, inputs, length = build("instructblip", None)
    with guard.looking(inputs) as look, pytest.raises(ModelRefused, match="without their pixels"):
        look.generate(**continue_with(inputs, length, RESTS["one"]), max_new_tokens=2)


def test_a_look_that_is_closed_says_so():
    guard, inputs, length = build("llava", "vcd")
    with guard.looking(inputs) as look:
        pass
    with pytest.raises(InputError, match="closed"):
        look.generate(**continue_with(inputs, length, RESTS["one"]), max_new_tokens=1)


@pytest.mark.parametrize("subject", [3, [], [{"role": "user"}], {"attention_mask": torch.ones(1, 3)}, None, [[], []]])
def test_what_nobody_can_look_at_is_refused(subject):
    model, _ = tiny("llava")
    with pytest.raises((InputError, ModeRefused)), Guard(model, TinyProcessor("llava")).looking(subject):
        pass


def test_a_batch_cannot_be_looked_at():
    guard, inputs, length = build("llava", "vcd")
    with (
        pytest.raises(InputError, match="one prompt, got 2"),
        guard.looking(continue_with(inputs, length, RESTS["rows"])),
    ):
        pass


def test_questions_that_are_no_texts_or_hold_pictures_are_refused():
    model, inputs = tiny("llava")
    picture = draw_pictures(1)[0]
    guard = Guard(model, TinyProcessor("llava"), "vcd")
    with guard.looking(picture) as look:
        with pytest.raises(InputError, match="question is a text"):
            look.ask([3])
        for odd in (3, None, {"question": "a"}):
            with pytest.raises(InputError, match="a question or a list of questions"):
                look.ask(odd)
        with pytest.raises(InputError, match="from the start"):
            look.chat([{"role": "user", "content": [{"type": "image", "image": picture}]}])
        with pytest.raises(InputError, match="image token"):
            look.ask("is w100 here")
        assert look.ask([]) == []
    with guard.looking(inputs) as look, pytest.raises(InputError, match="opened with model inputs"):
        look.ask("a")


@dataclass(frozen=True)
class Explodes:
    """Raises in the middle of a look's first forward, until it is told not to."""

    name: ClassVar[str] = "explodes"
    fuse: Any = None

    __hash__ = object.__hash__

    @hookimpl
    def hidden(self, gen: Any) -> Any:
        yield HiddenEdit("mlp", self._edit, depends_on_end=False)

    def _edit(self, hidden: Any, view: Any) -> Any:
        if self.fuse:
            raise ZeroDivisionError
        return hidden * 1.5


def test_an_exception_leaves_model_and_look_as_they_were():
    fuse = []
    guard, inputs, length = build("llava", [Explodes(fuse)])
    batch = continue_with(inputs, length, RESTS["rows"])
    expected = guard.generate(**batch, **SETTINGS)
    fuse.append(1)
    before = fingerprint(guard.model)
    with guard.looking(inputs) as look:
        with pytest.raises(ZeroDivisionError):
            look.generate(**batch, **SETTINGS)
        assert fingerprint(guard.model) == before
        fuse.clear()
        assert torch.equal(look.generate(**batch, **SETTINGS), expected)
        assert guard.report.prompts == {"main": "shared"}
        fuse.append(1)
        with pytest.raises(ZeroDivisionError):
            look.generate(**batch, **SETTINGS)
        fuse.clear()
        assert torch.equal(look.generate(**batch, **SETTINGS), expected)


def test_what_a_look_holds_is_freed_at_its_end():
    guard, inputs, length = build("llava", "vcd")
    with guard.looking(inputs) as look:
        look.generate(**continue_with(inputs, length, RESTS["one"]), max_new_tokens=1)
        prefixes = [prefix for _, prefix in look._memory._prefixes.values()]
        caches = [weakref.ref(prefix.cache) for prefix in prefixes]
        del prefixes
    gc.collect()
    assert len(caches) == 2
    assert [cache() for cache in caches] == [None, None]


@pytest.mark.parametrize("name", BOTH)
def test_threads_share_a_look(name):
    guard, inputs, length = build(name, "vcd")
    batches = [continue_with(inputs, length, RESTS[kind]) for kind in ("rows", "ragged", "one")] * 2
    expected = [guard.generate(**batch, **SETTINGS) for batch in batches]
    outputs, errors = {}, []
    start = threading.Barrier(len(batches))

    def ask(number):
        try:
            start.wait()
            outputs[number] = look.generate(**batches[number], **SETTINGS)
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    with guard.looking(inputs) as look:
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(batches))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert errors == []
    assert all(torch.equal(outputs[number], expected[number]) for number in range(len(batches)))


@pytest.mark.skipif(not MAKES_POSITIONS, reason="older versions read them, and are refused")
def test_positions_that_somebody_else_left_do_not_matter():
    guard, inputs, length = build("qwen2_vl", "vcd+vdd")
    batch = continue_with(inputs, length, RESTS["ragged"])
    expected = guard.generate(**batch, **SETTINGS, **DETAILS)
    with guard.looking(inputs) as look:
        look.generate(**batch, max_new_tokens=1)
        guard.model.model.rope_deltas = torch.tensor([[57], [-3], [11]])
        output = look.generate(**batch, **SETTINGS, **DETAILS)
    assert torch.equal(output.sequences, expected.sequences)
    assert error_between(output.logits, expected.logits) < TOLERANCE


@dataclass(frozen=True)
class Foreign:
    """A strategy of somebody else's, which says nothing of the end of the prompt."""

    name: ClassVar[str] = "foreign"
    says: bool | None = None

    @hookimpl
    def branches(self, gen: Any) -> Any:
        yield Branch("negative", pixels=lambda pixels, _: -pixels, depends_on_end=self.says)

    @hookimpl
    def hidden(self, gen: Any) -> Any:
        yield HiddenEdit("mlp", lambda hidden, _: hidden * 1.2, depends_on_end=self.says)

    @hookimpl
    def terms(self, gen: Any) -> Any:
        yield Contrast("negative", 1.0)


@pytest.mark.parametrize(
    ("says", "kind"),
    [
        pytest.param(says, kind, marks=pytest.mark.slow if kind == "rows" or (says and kind == "one") else [])
        for says in (None, True, False)
        for kind in RESTS
    ],
)
def test_what_may_depend_on_the_question_runs_whole_and_the_report_says_why(says, kind):
    guard, inputs, length = build("llava", [Foreign(says)])
    batch = continue_with(inputs, length, RESTS[kind])
    expected = guard.generate(**batch, **SETTINGS, **DETAILS)
    with guard.looking(inputs) as look:
        output = look.generate(**batch, **SETTINGS, **DETAILS)
    assert torch.equal(output.sequences, expected.sequences)
    assert error_between(output.logits, expected.logits) < TOLERANCE
    prompts = guard.report.prompts
    if says is False:
        assert prompts == {"main": "shared", "negative": "shared"}
    else:
        assert "'foreign' edits or observes layers" in prompts["main"]
        assert "depends_on_end" in prompts["negative"]
    assert guard.report.strategies[0].had_effect


def test_an_image_token_written_as_text_is_refused():
    model, _ = tiny("llava")
    with Guard(model, TinyProcessor("llava"), "vcd").looking(draw_pictures(1)[0]) as look:
        for ask in (look.ask, lambda text: look.inputs([text])):
            with pytest.raises(InputError, match="image token"):
                ask("what does <image> mean")


def test_encoded_images_and_lists_by_row_are_refused(looked):
    guard, inputs, batch, look = looked
    with pytest.raises(ModeRefused, match="lists something for each row"):
        look.generate(**batch, adapter_names=["a", "b"], max_new_tokens=1)
    encoded = {**inputs, "mm_encoder_outputs": {}}
    with pytest.raises(InputError, match="not with encoded images"), guard.looking(encoded):
        pass


@dataclass(frozen=True)
class Tower:
    """Edits the vision tower for main and for a branch."""

    name: ClassVar[str] = "tower"

    @hookimpl
    def branches(self, gen: Any) -> Any:
        yield Branch("turned", pixels=lambda pixels, _: pixels + 0.5, depends_on_end=False)
        yield Branch("longer", tokens=(Insert((7, 8)),))

    @hookimpl
    def hidden(self, gen: Any) -> Any:
        for branch, factor in (("main", 2.0), ("turned", -3.0)):
            yield HiddenEdit(
                "mlp", lambda hidden, _, by=factor: hidden * by, tower="vision", branch=branch, depends_on_end=False
            )

    @hookimpl
    def terms(self, gen: Any) -> Any:
        yield Contrast("turned", 0.5)
        yield Contrast("longer", 0.5)


@pytest.mark.parametrize("name", BOTH)
def test_edits_of_the_vision_tower_run_with_the_prefix(name):
    guard, inputs, length = build(name, [Tower()])
    for kind in ("rows", "ragged"):
        batch = continue_with(inputs, length, RESTS[kind])
        expected = guard.generate(**batch, **SETTINGS, **DETAILS)
        with guard.looking(inputs) as look:
            for _ in range(2):
                output = look.generate(**batch, **SETTINGS, **DETAILS)
                assert error_between(output.logits, expected.logits) < TOLERANCE
                assert set(guard.report.prompts.values()) == {"shared"}
                assert guard.report.strategies[0].had_effect


@pytest.mark.parametrize("kind", [pytest.param("one", marks=pytest.mark.slow), "rows", "ragged"])
@pytest.mark.parametrize("stack", ["transform", {"name": "transform", "params": {"kind": "blur"}}, "pba+vcd"], ids=str)
def test_edits_of_main_itself_run_whole(stack, kind):
    model, _ = tiny("llava")
    guard = Guard(model, TinyProcessor("llava"), [stack] if isinstance(stack, dict) else stack)
    picture = draw_pictures(1)[0]
    texts = {"one": ["w17 w18"], "rows": ["w17 w18", "w31 w32"], "ragged": ["w17 w18", "w31 w32 w33 w34", "w35"]}[kind]
    with guard.looking(picture) as look:
        answers = look.ask(texts, max_new_tokens=4, do_sample=False)
        assert "edits main's own inputs" in guard.report.prompts["main"]
    asked = [
        [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": text}]}]
        for text in texts
    ]
    assert answers == guard.chat(asked, max_new_tokens=4, do_sample=False)


def test_positions_that_depend_on_the_length_run_whole():
    guard, inputs, length = build("llava", "vcd")
    batch = continue_with(inputs, length, RESTS["rows"])
    text = guard.model.config.get_text_config(decoder=True)
    text.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "original_max_position_embeddings": 30}
    with guard.looking(inputs) as look:
        look.generate(**batch, max_new_tokens=1)
        assert "length of a prompt beyond 30" in guard.report.prompts["main"]
    text.rope_parameters["original_max_position_embeddings"] = 31
    with guard.looking(inputs) as look:
        look.generate(**batch, max_new_tokens=1)
        assert guard.report.prompts["main"] == "shared"


@pytest.mark.skipif(MAKES_POSITIONS, reason="newer versions can look")
def test_positions_made_inside_the_forward_are_refused():
    guard, inputs, length = build("qwen2_vl", "vcd")
    with guard.looking(inputs) as look, pytest.raises(ModelRefused, match="upgrade transformers"):
        look.generate(**continue_with(inputs, length, RESTS["one"]), max_new_tokens=1)


def test_inputs_by_token_that_nobody_knows_are_refused(looked):
    _, _, batch, look = looked
    with pytest.raises(ModelRefused, match="has an entry for each token"):
        look.generate(**batch, image_embeds_position_mask=batch["attention_mask"], max_new_tokens=1)


def test_a_forward_that_insists_on_pixels_is_refused():
    guard, inputs, length = build("llava", "vcd")
    batch = continue_with(inputs, length, RESTS["one"])
    insist = guard.model.get_decoder().register_forward_pre_hook(refuse_what_goes_on, with_kwargs=True)
    with guard.looking(inputs) as look, pytest.raises(ModelRefused, match="goes on, which this model"):
        look.generate(**batch, max_new_tokens=2)
    insist.remove()


def refuse_what_goes_on(_, args, kwargs):
    cache, states = find_cache(kwargs), kwargs.get("inputs_embeds")
    if cache is not None and cache.get_seq_length() and states.shape[1] > 1:
        raise ValueError("the prompt goes on, which this model cannot")

"""What a drop-in guard must survive: threads, streams, pipelines, copies, adapters, offloading, compilation, errors."""

import copy
import logging
import threading
from dataclasses import dataclass

import pytest
import torch
import transformers
from gold import SUPPRESSED, Against
from PIL import Image
from toy_processor import toy_processor
from transformers import DynamicCache, GenerationConfig, TextIteratorStreamer, pipeline
from transformers.generation.streamers import BaseStreamer
from versions import need, need_threads

from lvlm_guard import Guard, InputError, hookimpl
from lvlm_guard.testing import tiny
from lvlm_guard.testing.tiny import boost

SETTINGS = {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": SUPPRESSED}


@pytest.fixture(scope="module")
def llava():
    return tiny("llava")


@pytest.fixture(scope="module")
def answers(llava):
    model, inputs = llava
    plain = model.generate(**inputs, **SETTINGS)
    guarded = Guard(model, None, [Against("noised")]).generate(**inputs, **SETTINGS)
    assert not torch.equal(plain, guarded), "no power"
    return plain, guarded


class Collecting(BaseStreamer):
    def __init__(self):
        self.tokens = []

    def put(self, value):
        self.tokens += value.flatten().tolist()

    def end(self):
        self.tokens.append("end")


def test_many_threads_on_one_model_each_get_their_own_answer(llava, answers):
    model, inputs = llava
    other = Guard(model, None, [Against("blind")])
    expected = [*answers, other.generate(**inputs, **SETTINGS)]
    need_threads(model)
    guard = Guard(model, None, [Against("noised")])
    calls = [model.generate, guard.generate, other.generate]
    wrong = []

    def work(call, wanted):
        answers = [call(**inputs, **SETTINGS) for _ in range(5)]
        wrong.extend(call for answer in answers if not torch.equal(answer, wanted))

    threads = [threading.Thread(target=work, args=pair) for pair in zip(calls * 2, expected * 2, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert "forward" not in vars(model)


def test_a_streamer_sees_the_prompt_and_every_token(llava, answers):
    model, inputs = llava
    streamer = Collecting()
    guard = Guard(model, None, [Against("noised")])
    output = guard.generate(**inputs, **SETTINGS, streamer=streamer)
    assert streamer.tokens == [*output[0].tolist(), "end"]
    assert torch.equal(output, answers[1])


def test_an_iterator_streamer_works_from_a_worker_thread(answers):
    model, inputs = tiny("llava")
    guard = Guard(model, None, [Against("noised")])

    class Decoder:
        def decode(self, ids, **_):
            return "".join(f"{token} " for token in ids)

    streamer = TextIteratorStreamer(Decoder(), skip_prompt=True, timeout=20)
    worker = threading.Thread(target=guard.generate, kwargs={**inputs, **SETTINGS, "streamer": streamer})
    worker.start()
    text = "".join(streamer)
    worker.join()
    assert [int(one) for one in text.split()] == answers[1][0, inputs["input_ids"].shape[1] :].tolist()


def test_attached_guards_every_caller_and_no_longer_afterwards(llava, answers):
    model, inputs = llava
    guard = Guard(model, None, [Against("noised")])
    elsewhere = []
    with guard.attached():
        inside = model.generate(**inputs, **SETTINGS)
        worker = threading.Thread(target=lambda: elsewhere.append(model.generate(**inputs, **SETTINGS)))
        worker.start()
        worker.join()
        by_guard = guard.generate(**inputs, **SETTINGS)
        assisted = model.generate(**inputs, **SETTINGS, assistant_model=model)
    for got in (inside, elsewhere[0], by_guard, assisted):
        assert torch.equal(got, answers[1])
    assert torch.equal(model.generate(**inputs, **SETTINGS), answers[0])
    assert "generate" not in vars(model)


def test_a_pipeline_inside_attached_is_guarded():
    model, _ = tiny("llava")
    processor = toy_processor()
    guard = Guard(model, processor, [Against("noised")])
    pipe = pipeline("image-text-to-text", model=model, processor=processor)
    picture = Image.new("RGB", (30, 30), (200, 30, 90))
    ask = {"images": picture, "text": "<image> a b c", "generate_kwargs": dict(SETTINGS)}
    plain = pipe(**ask)[0]["generated_text"]
    with guard.attached():
        guarded = pipe(**ask)[0]["generated_text"]
    direct = guard.generate(**guard.inputs(images=picture, text="<image> a b c"), **SETTINGS)
    assert guarded != plain
    assert guarded.split()[-6:] == processor.decode(direct[0]).split()[-6:]


def test_a_copy_made_while_attached_runs_its_own_weights(llava):
    model, inputs = llava
    guard = Guard(model, None, [Against("noised")])
    with guard.attached():
        twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.get_output_embeddings().parameters():
            parameter.neg_()
    changed = twin.generate(**inputs, **SETTINGS)
    assert not torch.equal(changed, model.generate(**inputs, **SETTINGS))


def test_a_copied_guard_guards_its_own_copy_of_the_model(answers):
    model, inputs = tiny("llava")
    twin = copy.deepcopy(Guard(model, None, [Against("noised")]))
    assert twin.model is not model
    assert torch.equal(twin.generate(**inputs, **SETTINGS), answers[1])


def test_a_copy_made_inside_a_forward_runs_its_own_weights(llava):
    model, inputs = llava
    copies = []
    handle = model.get_decoder().register_forward_pre_hook(lambda *_: copies.append(copy.deepcopy(model)))
    try:
        Guard(model, None, [Against("noised")]).generate(**inputs, **SETTINGS)
    finally:
        handle.remove()
    twin = copies[0]
    with torch.no_grad():
        twin.get_output_embeddings().weight.neg_()
    ids = inputs["input_ids"][:, -3:]
    with torch.no_grad():
        assert torch.allclose(twin(input_ids=ids).logits, -model(input_ids=ids).logits, atol=1e-4)


class Boom(Exception):
    pass


@pytest.mark.parametrize("error", [Boom, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["model", "strategy"])
def test_after_an_exception_everything_is_back(llava, answers, where, error):
    model, inputs = llava
    calls = []

    def explode(*_):
        calls.append(1)
        if len(calls) == 3:
            raise error

    class Exploding(Against):
        @hookimpl
        def terms(self, gen):
            explode()
            return Against.terms(self, gen)

    handle = model.get_decoder().register_forward_pre_hook(explode) if where == "model" else None
    strategy = Against("noised") if where == "model" else _frozen(Exploding)("noised")
    try:
        with pytest.raises(error):
            Guard(model, None, [strategy]).generate(**inputs, **SETTINGS)
    finally:
        if handle:
            handle.remove()
    assert "forward" not in vars(model)
    assert torch.equal(model.generate(**inputs, **SETTINGS), answers[0])
    assert torch.equal(Guard(model, None, [Against("noised")]).generate(**inputs, **SETTINGS), answers[1])


def _frozen(cls):
    return dataclass(frozen=True)(cls)


def test_a_lora_model_is_guarded_where_it_really_decodes(answers):
    peft = pytest.importorskip("peft")
    model, inputs = tiny("llava")
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], r=2))
    adapted.eval()
    guarded = Guard(adapted, None, [Against("noised")]).generate(**inputs, **SETTINGS)
    assert torch.equal(guarded, answers[1])  # a fresh adapter is the identity
    assert "forward" not in vars(model)


@pytest.mark.filterwarnings("ignore:You are calling .generate")  # 4.57 looks at where the weights rest
def test_offloaded_weights_are_guarded_and_the_offload_stays(answers):
    accelerate = pytest.importorskip("accelerate")
    model, inputs = tiny("llava")
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    hooked = vars(model).get("forward")
    guard = Guard(model, None, [Against("noised")])
    assert torch.equal(guard.generate(**inputs, **SETTINGS), answers[1])
    assert vars(model).get("forward") is hooked


def test_every_return_type_of_generate_comes_back(llava, answers):
    model, inputs = llava
    guard = Guard(model, None, [Against("noised")])
    extras = {
        "return_dict_in_generate": True, "output_scores": True, "output_logits": True, "output_hidden_states": True,
    }  # fmt: skip
    plain, guarded = (call(**inputs, **SETTINGS, **extras) for call in (model.generate, guard.generate))
    assert type(plain) is type(guarded)
    assert torch.equal(guarded.sequences, answers[1])
    for one, other in zip(plain.hidden_states, guarded.hidden_states, strict=True):
        assert [tuple(layer.shape) for layer in one] == [tuple(layer.shape) for layer in other]
    for one, other in zip(plain.past_key_values.layers, guarded.past_key_values.layers, strict=True):
        assert one.keys.shape == other.keys.shape
    assert guarded.past_key_values.get_seq_length() == plain.past_key_values.get_seq_length()
    assert "reorder_cache" not in vars(guarded.past_key_values)


def test_a_returned_cache_is_mains_own(llava):
    model, inputs = llava
    guard = Guard(model, None, [Against("longer")])
    output = guard.generate(**inputs, **SETTINGS, return_dict_in_generate=True)
    with torch.no_grad():
        fresh = model(**{**inputs, "input_ids": output.sequences[:, :-1], "attention_mask": None}, use_cache=True)
    for mine, wanted in zip(output.past_key_values.layers, fresh.past_key_values.layers, strict=True):
        assert torch.allclose(mine.keys, wanted.keys, atol=1e-4)


def test_positional_inputs_and_a_generation_config_object_work(llava, answers):
    model, inputs = llava
    rest = {name: value for name, value in inputs.items() if name != "input_ids"}
    guard = Guard(model, None, [Against("noised")])
    config = GenerationConfig(**SETTINGS)
    assert torch.equal(guard.generate(inputs["input_ids"], config, **rest), answers[1])
    assert torch.equal(guard.generate(inputs["input_ids"], **rest, **SETTINGS), answers[1])
    assert vars(config)["max_new_tokens"] == 6


def test_a_users_empty_cache_works(llava, answers):
    model, inputs = llava
    guard = Guard(model, None, [Against("noised")])
    mine = DynamicCache(config=model.config.get_text_config())
    assert torch.equal(guard.generate(**inputs, **SETTINGS, past_key_values=mine), answers[1])
    assert mine.get_seq_length() == answers[1].shape[1] - 1


def test_stop_strings_without_a_tokenizer_say_what_to_add(llava):
    model, inputs = llava[:2]
    for stack in (None, "vcd"):
        with pytest.raises((InputError, ValueError), match="tokenizer"):
            Guard(model, None, stack).generate(**inputs, stop_strings=["a"], max_new_tokens=2)


def test_stop_strings_end_a_guarded_call(llava):
    model, inputs = llava
    processor = toy_processor()
    guard = Guard(model, processor, [Against("noised")])
    free = guard.generate(**inputs, **SETTINGS)[0, inputs["input_ids"].shape[1] :].tolist()
    stop = processor.tokenizer.convert_ids_to_tokens(free[1])
    cut = guard.generate(**inputs, **SETTINGS, stop_strings=[stop], tokenizer=processor.tokenizer)
    new = cut[0, inputs["input_ids"].shape[1] :].tolist()
    assert 0 < len(new) < len(free)
    assert new == free[: len(new)]


@pytest.mark.parametrize(
    ("architecture", "executor"),
    [
        ("mllama", "sequential"),
        ("qwen3_5", "sequential"),
        ("instructblip", "batched"),
        ("paligemma", "batched"),
        ("llava_onevision", "batched"),
    ],
)
def test_further_architectures_run_and_fall_back_where_one_batch_is_not_exact(architecture, executor):
    need(architecture)
    model, inputs = tiny(architecture)
    guard = Guard(model, None, [Against("noised")])
    guarded = guard.generate(**inputs, **SETTINGS)
    assert guard.report.strategies[0].had_effect
    assert guard.report.executor == executor, guard.report.reason
    one_by_one = Guard(model, None, [Against("noised")], executor="sequential")
    assert torch.equal(guarded, one_by_one.generate(**inputs, **SETTINGS))
    if architecture != "instructblip":  # decodes from embeddings, which generate does only with a cache
        assert torch.equal(guarded, one_by_one.generate(**inputs, **SETTINGS, use_cache=False))


def test_an_encoder_decoder_runs_one_by_one():
    text = {
        "model_type": "bart", "vocab_size": 128, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
        "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": None,
    }  # fmt: skip
    vision = {
        "embed_dim": [16, 16], "depths": [1, 1], "num_heads": [2, 2], "num_groups": [2, 2], "patch_size": [7, 3],
        "patch_stride": [4, 2], "patch_padding": [3, 1], "patch_prenorm": [False, True], "projection_dim": 32,
        "window_size": 2, "max_temporal_embeddings": 10, "max_position_embeddings": 10,
    }  # fmt: skip
    config = transformers.Florence2Config(text_config=text, vision_config=vision, image_token_id=100)
    torch.manual_seed(0)
    model = transformers.Florence2ForConditionalGeneration(config).eval()
    boost(model)
    pixels = torch.randn(1, 3, 16, 16)
    ids = torch.tensor([[100] * 5 + [5, 6, 7]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    guard = Guard(model, None, [Against("noised")])
    guarded = guard.generate(**inputs, **settings)
    assert (guard.report.executor, guard.report.strategies[0].had_effect) == ("sequential", True)
    assert torch.equal(guarded, guard.generate(**inputs, **settings, use_cache=False))


@pytest.mark.filterwarnings("ignore")  # torch announces the end of this quantisation; users still have it
def test_dynamic_int8_decodes_one_by_one_because_rows_would_see_each_other(llava):
    quantisation = pytest.importorskip("torch.ao.quantization")
    model, inputs = llava
    small = quantisation.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    guard = Guard(small, None, [Against("noised")])
    guard.generate(**inputs, **SETTINGS)
    assert (guard.report.executor, guard.report.strategies[0].had_effect) == ("sequential", True)
    assert "quantised" in guard.report.reason


def test_generate_logs_no_more_than_once_about_its_arguments(llava):
    model, inputs = llava
    logger, records = logging.getLogger("transformers.generation.utils"), []

    class Keeping(logging.Handler):
        def emit(self, record):
            records.append(record.getMessage())

    handler, level = Keeping(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    try:
        Guard(model, None, [Against("noised")]).generate(**inputs, max_length=40, max_new_tokens=2, do_sample=False)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert len([text for text in records if "max_new_tokens" in text]) == 1
    assert logger.filters == []

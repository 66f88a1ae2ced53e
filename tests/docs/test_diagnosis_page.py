"""The figures of the page on diagnosis are those of the committed plants."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("page", ["README.md", "docs/guides/diagnosis.md"])
def test_shares_are_those_of_the_plants(page):
    shares = json.loads((ROOT / "benchmarks/results/plants.json").read_text(encoding="utf-8"))["shares"]
    text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    stage, component = (f"{shares[name][0]:.3f}".removeprefix("0") for name in ("class", "location"))
    assert f"named the stage in {stage} and the very component in {component}" in text.replace(
        "the stage was named", "named the stage"
    )
    assert str(shares["class"][1]) in text


def test_sound_cases_are_counted():
    shares = json.loads((ROOT / "benchmarks/results/plants.json").read_text(encoding="utf-8"))["shares"]
    text = " ".join((ROOT / "docs/guides/diagnosis.md").read_text(encoding="utf-8").split())
    share, cases = shares["none"]
    assert f"{round(share * cases)} of {cases} sound cases were called sound" in text
    assert shares["none bfloat16"] == shares["none int8"] == [1.0, 4]


@pytest.mark.parametrize("page", ["README.md", "docs/guides/diagnosis.md"])
def test_the_second_model_is_told_as_it_came_out(page):
    shares = json.loads((ROOT / "benchmarks/results/plants_qwen2_vl.json").read_text(encoding="utf-8"))["shares"]
    text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    stage, component = (f"{shares[name][0]:.3f}".removeprefix("0") for name in ("class", "location"))
    share, cases = shares["none"]
    assert stage in text
    assert component in text
    assert f"accused {cases - round(share * cases)} of {cases} sound cases" in text


def test_the_other_seed_is_told_as_it_came_out():
    shares = json.loads((ROOT / "benchmarks/results/plants_llava_1.json").read_text(encoding="utf-8"))["shares"]
    text = " ".join((ROOT / "docs/guides/diagnosis.md").read_text(encoding="utf-8").split())
    stage, component = (f"{shares[name][0]:.3f}".removeprefix("0") for name in ("class", "location"))
    share, cases = shares["none"]
    assert f"named in {stage} and the component in {component} of {shares['class'][1]}" in text
    assert (
        f"{round(share * cases)} of {cases} sound cases were called sound, so were the {shares['none int8'][1]} in int8"
        in text
    )

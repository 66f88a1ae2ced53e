"""The figures of looks and of static caches on the pages are those of the committed tables."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOOKS = re.compile(
    r"\| (six yes/no questions|a caption of 32 tokens and eight questions), (.*) \| ([\d.]+) \| ([\d.]+) \|"
)
STATIC = re.compile(r"\| (plain|plain, twice the rows|one branch .*|two branches .*) \| ([\d.]+) \| ([\d.]*) ?\|")
VARIANTS = {
    "plain": ("plain", "plain, growing"),
    "plain, twice the rows": ("plain, compiled, twice the rows", ""),
    "one branch": ("noise branch, compiled", "noise branch, growing"),
    "two branches": ("noise and image-free branch, compiled", "noise and image-free branch, growing"),
}


def read_rows(name):
    return json.loads((ROOT / f"benchmarks/results/{name}.json").read_text(encoding="utf-8"))["rows"]


def test_ratios_of_looks():
    ratios = {(row["work"], row["stack"], row["way"]): row["ratio_p50"] for row in read_rows("shared_looks")}
    found = LOOKS.findall((ROOT / "docs/guides/looks.md").read_text(encoding="utf-8"))
    assert len(found) == 4
    for work, stack, whole, on_look in found:
        case = work.replace("a caption of 32 tokens", "caption"), stack.strip("`")
        for way, shown in (("whole prompts", whole), ("look", on_look)):
            assert float(shown) == round(ratios[(*case, way)], 2), (case, way)


def test_ratios_of_static_caches():
    ratios = {row["variant"]: row["step_ratio_p50"] for row in read_rows("static_caches") if row["model"] == "bundled"}
    page = (ROOT / "docs/explanation/architecture.md").read_text(encoding="utf-8")
    found = STATIC.findall(page)
    branch = next(row for row in read_rows("static_caches") if row["variant"] == VARIANTS["one branch"][0])
    assert f"between {branch['step_ratio_p20']:.2f} and {branch['step_ratio_p80']:.2f}" in page
    assert len(found) == 4
    for what, *shown in found:
        for variant, figure in zip(VARIANTS[what.partition(" (")[0]], shown, strict=True):
            assert (float(figure) if figure else None) == (round(ratios[variant], 2) if variant else None), variant


def test_ratios_of_bench_runs():
    ratios = {
        (row["shape"], row["suite"]): row["ratio_p50"]
        for row in read_rows("suites_on_looks")
        if (row["stack"], row["way"]) == ("vcd", "--looks")
    }
    page = " ".join((ROOT / "docs/guides/looks.md").read_text(encoding="utf-8").split())
    assert f"`vcd` takes {ratios['27m', 'pope']:.2f} of the time" in page
    assert f"and {ratios['27m', 'scenes']:.2f} of it on `scenes`" in page
    assert f"({ratios['bundled', 'scenes']:.2f} on `scenes`)" in page

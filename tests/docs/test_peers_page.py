"""The costs beside other packages are those of the committed table."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NONE = "\u2013"
COLUMNS = ("lvlm_guard", "transformers' guidance", "mitigv", "nnsight")
ROW = re.compile(r"\| (noised image|no image), (short answer|caption), (27|135) M, batch ([\d, ]+) \|(.*)\|")


def test_ratios_are_those_of_the_table():
    rows = json.loads((ROOT / "benchmarks/results/peers.json").read_text(encoding="utf-8"))["rows"]
    ratios = {
        tuple(row[name] for name in ("model", "batch", "answer", "branch", "by")): row["ratio_p50"] for row in rows
    }
    page = (ROOT / "docs/explanation/other-packages.md").read_text(encoding="utf-8")
    lines = ROW.findall(page)
    assert len(lines) == 8
    for branch, answer, size, batches, cells in lines:
        for by, cell in zip(COLUMNS, cells.split("|"), strict=True):
            keys = [
                (f"LLaVA, {size} M", int(batch), answer, branch.replace("noised image", "noise"), by)
                for batch in batches.split(", ")
            ]
            shown = [f"{ratios[key]:.2f}" for key in keys if key in ratios]
            assert cell.strip() == (", ".join(shown) or NONE), (branch, answer, by)

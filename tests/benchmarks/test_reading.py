"""The trace of one decode step lists what runs in it, and nothing that runs before."""

import pytest


@pytest.fixture(scope="module")
def reading(script):
    return script("reading")


@pytest.fixture(scope="module")
def steps(reading):
    sources = reading.Sources(reading.CHECKOUT)
    return {stack: reading.record_step(stack, sources) for stack in reading.STACKS}


def files(step):
    return {function.path for function in step.functions}


def test_a_step_runs_through_strategy_core_and_kernels(steps):
    vcd = steps["vcd"]
    assert vcd.executor == "batched"
    assert ("plugins/lvlm_guard_contrastive/vcd.py", "terms") in {(item.path, item.name) for item in vcd.functions}
    assert "kernels/lvlm_guard_kernels/combine/__init__.py" in files(vcd)
    assert any(path.startswith("lvlm_guard/forward/") for path in files(vcd))


def test_what_runs_before_the_step_is_left_out(steps):
    names = {function.name for step in steps.values() for function in step.functions}
    assert not names & {"start", "branches", "generate", "record_step", "tiny"}


def test_work_inside_the_layers_is_recorded(steps):
    assert "plugins/lvlm_guard_steering/vsv.py" in files(steps["vsv"])
    assert len(steps["pai"].lines) > len(steps["vcd"].lines)


def test_lines_are_counted_once_and_code_is_part_of_them(reading, tmp_path):
    (tmp_path / "plugins").mkdir()
    path = tmp_path / "plugins" / "module.py"
    path.write_text(
        '@staticmethod\ndef outer():\n    """Doc."""\n\n    # why\n    def inner():\n        return 1\n    return inner\n'
    )
    names = {}
    exec(compile(path.read_text().replace("@staticmethod", "# no"), str(path), "exec"), names)
    sources = reading.Sources(tmp_path)
    outer, inner = (sources.function_of(code) for code in (names["outer"].__code__, names["outer"]().__code__))
    step = reading.Step("any", "none", (outer, inner))
    assert (outer.name, inner.name) == ("outer", "inner")
    assert (len(step.lines), sources.count_code(step.lines)) == (8, 5)
    assert sources.function_of(pytest.fixture.__code__) is None


@pytest.mark.slow
def test_the_page_has_every_table(reading, capsys):
    assert reading.main(["--functions"]) == 0
    page = capsys.readouterr().out
    assert all(f"| {stack} |" in page and f"`{stack}`" in page for stack in reading.STACKS)
    assert "| plugins |" in page
    assert "per 1,000 lines." in page


def test_any_is_counted_where_it_is_used(reading, tmp_path):
    (tmp_path / "module.py").write_text("from typing import Any\n\ndef f(x: Any) -> list[Any]: ...\n")
    assert reading.count_any(tmp_path) == (2, 3)

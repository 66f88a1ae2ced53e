"""The front of the project: its workflow, versions, changelog and addresses agree with each other."""

import re
from importlib.metadata import metadata, requires

import pytest
import yaml

import lvlm_guard

HOME = "https://github.com/lvlm-guard/lvlm-guard"
TARGET = re.compile(r"^([\w-]+):", re.MULTILINE)


@pytest.fixture
def read(checkout):
    return lambda name: (checkout / name).read_text(encoding="utf-8")


@pytest.fixture
def workflow(read):
    return yaml.safe_load(read(".github/workflows/ci.yml"))


@pytest.fixture
def matrix(workflow):
    return workflow["jobs"]["test"]["strategy"]["matrix"]


@pytest.fixture
def commands(workflow, matrix):
    """Every command that the workflow runs."""
    steps = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    return [
        *(step for step in steps if step != "${{ matrix.command }}"),
        *(row["command"] for row in matrix["include"]),
    ]


def test_every_command_of_the_workflow_is_a_target_of_the_makefile(commands, read):
    makefile = read("Makefile")
    for command in commands:
        make, target, *settings = command.split()
        assert make == "make"
        assert target in TARGET.findall(makefile), command
        assert [name for name in settings if f"\n{name.split('=')[0]} ?=" not in makefile] == [], command


def test_the_workflow_runs_what_continuous_integration_runs(commands, read):
    assert read(".ci/run").splitlines()[-1] in commands
    assert {"make check", "make test-lowest"} <= set(commands)


def test_the_matrix_covers_the_supported_versions(matrix, read):
    pinned = re.search(r"^transformers==(.+)$", read("constraints.txt"), re.MULTILINE)[1]
    others = re.search(r"^VERSIONS \?= (.+)$", read("Makefile"), re.MULTILINE)[1].split()
    versions = matrix["transformers"]
    assert {row["transformers"]: row["command"].split("VERSIONS=")[1:] for row in matrix["include"]} == {
        version: [] if version == pinned else [version] for version in versions
    }
    assert others == [version for version in versions if version != pinned]
    assert f"the suite is for {', '.join(versions[:-1])} and {versions[-1]}" in read("README.md")
    assert f">={matrix['python'][0]}" == metadata("lvlm-guard")["Requires-Python"]


def test_the_lowest_versions_are_those_that_are_allowed(read):
    lowest = dict(re.findall(r"^([\w-]+)==([\d.]+)$", read("constraints-lowest.txt"), re.MULTILINE))
    lines = "\n".join(line for line in requires("lvlm-guard") if "extra ==" not in line)
    floors = dict(re.findall(r"^([\w-]+)>=([\d.]+)", lines, re.MULTILINE))
    assert set(lowest) == set(floors)
    assert [name for name in lowest if not f"{lowest[name]}.".startswith(f"{floors[name]}.")] == []


def test_the_quick_paths_exist(checkout, read):
    block = re.search(r"^QUICK := ((?:.*\\\n)*.*)$", read("Makefile"), re.MULTILINE)[1]
    paths = block.replace("\\\n", " ").split()
    assert paths
    assert [path for path in paths if not (checkout / path).exists()] == []


def test_one_version_everywhere(read):
    version = re.search(r'^version = "(.+)"$', read("pyproject.toml"), re.MULTILINE)[1]
    citation = yaml.safe_load(read("CITATION.cff"))
    assert lvlm_guard.__version__ == version == citation["version"]
    assert citation["license"] == metadata("lvlm-guard")["License-Expression"]
    assert citation["repository-code"] == HOME
    assert (version, str(citation["date-released"])) == sections(read("CHANGELOG.md"))[0]


def test_every_released_version_has_a_dated_section(read):
    text = read("CHANGELOG.md")
    assert re.findall(r"^## .*", text, re.MULTILINE)[0] == "## [Unreleased]"
    released = sections(text)
    assert len(released) == len(re.findall(r"^## ", text, re.MULTILINE)) - 1, "a section has no version or no date"
    order = [tuple(map(int, version.split("."))) for version, _ in released]
    assert order == sorted(set(order), reverse=True)
    links = dict(re.findall(r"^\[(.+)\]: (\S+)$", text, re.MULTILINE))
    assert links == {
        "Unreleased": f"{HOME}/compare/v{released[0][0]}...HEAD",
        **{version: f"{HOME}/releases/tag/v{version}" for version, _ in released},
    }


def sections(changelog):
    """(version, date) of each released section, newest first."""
    return re.findall(r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)$", changelog, re.MULTILINE)


def test_the_addresses_are_there_and_lead_home(read):
    block = read("pyproject.toml").partition("[project.urls]\n")[2].partition("\n\n")[0]
    urls = dict(re.findall(r'^(\w+) = "(.+)"$', block, re.MULTILINE))
    assert {"Homepage", "Documentation", "Issues", "Changelog"} <= set(urls)
    pages = ["SECURITY.md", "CITATION.cff", "CODE_OF_CONDUCT.md", "CHANGELOG.md", ".github/ISSUE_TEMPLATE/config.yml"]
    addresses = [*urls.values(), *re.findall(r"https://github\.com/[^\s)]+", "\n".join(map(read, pages)))]
    assert [address for address in addresses if not f"{address}/".startswith(f"{HOME}/")] == []


@pytest.mark.parametrize("form", ["bug_report", "strategy_request"])
def test_issue_forms_are_complete(form, read):
    form = yaml.safe_load(read(f".github/ISSUE_TEMPLATE/{form}.yml"))
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert form["name"]
    assert form["description"]
    assert len({field["id"] for field in fields}) == len(fields)
    assert all(field["attributes"]["label"] for field in fields)


def test_hooks_before_a_commit_run_the_tools_of_the_makefile(read):
    hooks = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"][0]["hooks"]
    entries = {hook["entry"].replace(".venv/bin", "$(BIN)").replace(" --fix", "") for hook in hooks}
    assert [entry for entry in entries if entry not in read("Makefile")] == []
    assert {hook["language"] for hook in hooks} == {"system"}

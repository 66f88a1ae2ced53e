"""Warnings point at the first line outside the library, however many of its frames lie between."""

import types
import warnings

import pytest
import torch

from lvlm_guard.errors import GuardWarning
from lvlm_guard.user_warnings import warn_user


def library_function(source, package):
    """The function `run` of a module that claims to belong to a package."""
    module = types.ModuleType(f"{package}.made_up")
    exec(compile(source, f"{package}/made_up.py", "exec"), vars(module))
    return module.run


def nest(package, depth):
    """A function of `package` that warns from `depth` frames further in."""
    function = warn_user
    for _ in range(depth):
        inner = library_function("def run(*arguments):\n    return inner(*arguments)\n", package)
        inner.__globals__["inner"] = function
        function = inner
    return function


@pytest.mark.parametrize("depth", [0, 1, 5])
@pytest.mark.parametrize("package", ["lvlm_guard", "torch"])
def test_the_warning_points_here_from_any_depth(package, depth):
    with pytest.warns(GuardWarning, match="look here") as caught:
        torch.no_grad()(nest(package, depth))("look here", GuardWarning)
    assert caught[0].filename == __file__


def test_the_frames_of_another_package_are_the_users():
    with pytest.warns(GuardWarning) as caught:
        nest("lvlm_guard_elsewhere", 1)("look here", GuardWarning)
    assert caught[0].filename == "lvlm_guard_elsewhere/made_up.py"


def test_a_warning_comes_once_for_one_line_and_can_be_an_error():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            warn_user("once", GuardWarning)
    assert len(caught) == 1
    with pytest.raises(GuardWarning, match="stop"):
        warn_user("stop", GuardWarning)

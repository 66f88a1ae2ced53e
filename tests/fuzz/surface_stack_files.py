"""Stack files: broken, hostile and odd ones, in both languages and in no language at all."""

import os
import random
from pathlib import Path

from fuzzing import Attempt, Surface

from lvlm_guard import Stack

NAMES = ("a.toml", "a.yaml", "a.yml", "A.YAML", "a", "a.json", ".yaml", "é.toml", "a b.yaml")
SCALARS = (
    "vcd", "true", "1", "1e-3", "1e400", ".inf", "-.inf", ".nan", "nan", "inf", "9" * 5000, "2020-01-01", "2020-99-99",
    "12:30:45", "0x1F", "0o17", "0b1", "010", "~", "''", '"\\ud800"', "'os:system'", "!!python/name:os.system", "!!int ''",
    "!!float x", "!!bool x", "!!timestamp x", "!!binary x", "!!set {a}", "!!omap []", "*a", "&a 1", "<<", "%", "@", "`", "\t",
    "{}", "[]", "[[[]]]", "? x", "|", ">", "---", "...", "#", "x" * 3000,
)  # fmt: skip
KEYS = ("name", "params", "stack", "alpha", "beta", "seed", "1", "true", "<<", "*a", "? [a]", "''", "name", "no")
FORMS = ("{}", "[[stack]]\nname = {}\n", "[[stack]]\nname = 'vcd'\nparams = {{alpha = {}}}\n", "stack = [{}]", "stack: {}",
         "stack:\n- {}\n", "stack:\n- name: {}\n", "stack:\n- name: vcd\n  params: {{alpha: {}, seed: {}}}\n")  # fmt: skip


def draw_text(chance: random.Random) -> str:
    kind = chance.randrange(8)
    if kind == 0:
        return chance.choice(("stack: ", "stack = ", "")) + chance.choice("[{(") * chance.choice((5, 50, 3000, 100_000))
    if kind == 1:
        levels = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'x'}]" for i in range(12))
        return f"{levels}\nstack: *a11"
    if kind == 2:
        return chance.choice(("stack: &a [*a]", "stack: &a {stack: *a}", "stack:\n- &a {name: vcd, params: *a}"))
    if kind == 3:
        return "".join(chance.choice(" \n\t[]{}:,-=&*!|>'\"#%@`?.aZ019\0é") for _ in range(chance.randrange(200)))
    if kind == 4:
        return "stack = {" + ".".join(["a"] * chance.choice((3, 2000))) + " = 1}"
    if kind == 5:
        pairs = ", ".join(f"{chance.choice(KEYS)}: {chance.choice(SCALARS)}" for _ in range(chance.randrange(6)))
        return chance.choice(("stack: [{%s}]", "stack: {%s}", "{%s}")) % pairs
    form = chance.choice(FORMS)
    return form.format(*(chance.choice(SCALARS) for _ in range(form.count("{}"))))


def draw_bytes(chance: random.Random) -> bytes:
    text = draw_text(chance)
    kind = chance.randrange(10)
    if kind < 6:
        return text.encode("utf-8", "replace")
    if kind == 6:
        return b"\xef\xbb\xbf" + text.encode("utf-8", "replace")
    if kind == 7:
        return text.encode(chance.choice(("utf-16", "utf-16-le", "utf-32")), "replace")
    if kind == 8:
        return chance.randbytes(chance.randrange(300))
    return text.encode("utf-8", "replace") + b"\n#" + b"x" * chance.choice((1000, 300_000))


def draw(chance: random.Random, folder: Path) -> Attempt:
    path = folder / chance.choice(NAMES)
    kind = chance.randrange(12)
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        os.mkfifo(path)
    elif kind == 2:
        path.symlink_to(chance.choice((path, Path("/dev/zero"), folder / "none")))
    elif kind == 3:
        path = chance.choice((folder / "a\0.yaml", folder / ("x" * 400 + ".toml"), folder / "none.toml"))
    else:
        path.write_bytes(draw_bytes(chance))
    read = chance.choice((Stack.read, Stack.of, lambda place: Stack.of(str(place))))
    return Attempt(
        f"{path.name} {path.read_bytes()[:200]!r}" if kind > 3 else f"kind {kind} {path.name!r}"[:80],
        lambda: read(path),
    )


SURFACE = Surface("stack files", draw, attempts=1500, slice=120)

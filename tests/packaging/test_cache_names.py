"""What forwards call their cache depends on the version of transformers: one file knows the names."""

import ast


def names_a_cache(node):
    constant = isinstance(node, ast.Constant) and node.value == "past_key_values"
    return constant or (isinstance(node, ast.Attribute) and node.attr == "past_key_values")


def test_one_file_names_the_cache(checkout):
    found = [
        f"{path.relative_to(checkout)}:{node.lineno}"
        for room in ("lvlm_guard", "plugins")
        for path in sorted((checkout / room).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if names_a_cache(node)
    ]
    assert len(found) == 1, found
    assert found[0].startswith("lvlm_guard/cache_names.py"), "use find_cache, name_of_cache and CACHE_NAMES"

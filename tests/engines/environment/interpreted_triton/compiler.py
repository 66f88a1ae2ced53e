"""The compiler of the back end, which compiles nothing."""

from typing import Any, NoReturn

from triton.backends.compiler import BaseBackend, GPUTarget


class InterpretedBackend(BaseBackend):
    """Stands where Triton wants a compiler; kernels never come to it."""

    @staticmethod
    def supports_target(target: GPUTarget) -> bool:
        """Whether this is the target of `InterpretedDriver`."""
        return bool(target.backend == "cpu")

    def hash(self) -> str:
        """Return a name of what is compiled here."""
        return "interpreted"

    def parse_options(self, options: dict[str, Any]) -> NoReturn:
        """Refuse to compile."""
        raise RuntimeError("Kernels run in Triton's interpreter alone here: set TRITON_INTERPRET=1.")

    add_stages = load_dialects = get_module_map = parse_options

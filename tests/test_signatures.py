"""More than four arguments are given by name, so that a call says what it passes."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
MOST = 4
LEFT = {  # whose order somebody else has set: Flower's, torchvision's, what Ray passes on, and the C calls
    ("simulations/engine/grid.py", "create_message"), ("simulations/engine/worker.py", "setup"),
    ("sparcl_core/networks/resnet.py", "_make_layer"),
}  # fmt: skip


def functions():
    for package in ("sparcl_core", "client", "server", "simulations"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if path.is_relative_to(ROOT / "sparcl_core/kernels"):  # numbers for C, in its order
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef):
                    yield str(path.relative_to(ROOT)), node


def is_command(node: ast.FunctionDef) -> bool:
    """A command of the command line: its arguments are options."""
    return any("app" in ast.unparse(decorator) for decorator in node.decorator_list)


def test_functions_take_at_most_four_arguments_by_position():
    wrong = []
    for path, node in functions():
        names = [one.arg for one in (*node.args.posonlyargs, *node.args.args) if one.arg not in ("self", "cls")]
        if len(names) > MOST and (path, node.name) not in LEFT and not is_command(node):
            wrong.append(f"{path}: {node.name}({', '.join(names)})")
    assert not wrong, "\n".join(wrong)


def test_the_exceptions_are_there():
    assert {(path, node.name) for path, node in functions()} >= LEFT

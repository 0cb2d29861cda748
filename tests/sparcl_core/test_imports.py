"""The direction of the arrows: the core knows neither Flower nor Ray."""

import os
import subprocess
import sys


def test_the_core_imports_neither_flower_nor_ray():
    code = (
        "import sparcl_core.solo, sparcl_core.protocol, sparcl_core.footprint, sparcl_core.costs; "
        "import sys; found = {'flwr', 'ray'} & set(sys.modules); assert not found, found"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ, PYTHONHASHSEED="3"))
    assert done.returncode == 0, done.stderr

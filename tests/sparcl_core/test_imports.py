"""The direction of the arrows: the core knows neither Flower nor Ray."""

import os
import subprocess
import sys


def test_settings_are_checked_without_pytorch_flower_or_ray():
    code = (
        "from simulations.config.loading import available, load; [load(name) for name in available()]; "
        "import sys; found = {'torch', 'flwr', 'ray', 'pyarrow', 'scipy', 'sklearn'} & set(sys.modules); assert not found, found"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_core_imports_neither_flower_nor_ray():
    code = (
        "import sparcl_core.solo, sparcl_core.wire.protocol, sparcl_core.costs.memory, sparcl_core.costs.device; "
        "import sys; found = {'flwr', 'ray'} & set(sys.modules); assert not found, found"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ, PYTHONHASHSEED="3"))
    assert done.returncode == 0, done.stderr

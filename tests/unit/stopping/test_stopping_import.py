"""`wmtp.stopping` is usable alone: it pulls in no heavy package, and quickly."""

import os
import subprocess
import sys
from pathlib import Path

CODE = """
import sys, time
start = time.process_time()
import wmtp.stopping
seconds = time.process_time() - start
stopper = wmtp.stopping.LossEarlyStopping({"enabled": True, "patience": 1})
stopper.should_stop({"loss": 1.0})
assert stopper.should_stop({"loss": 1.0})
stopper.load_state(stopper.get_state())
heavy = {"torch", "numpy", "pydantic", "yaml", "transformers", "datasets", "mlflow"} & set(sys.modules)
print(seconds, *heavy)
"""


def test_import_is_light():
    path = os.pathsep.join([str(Path(__file__).parents[3] / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    runs = [
        subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True)
        for _ in range(3)
    ]
    assert all(len(run.stdout.split()) == 1 for run in runs), runs[0].stdout
    # Seconds of CPU, a gross bound for busy machines: 0.06 on a quiet one.
    assert min(float(run.stdout.split()[0]) for run in runs) < 0.3

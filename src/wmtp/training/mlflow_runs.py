"""What MLflow has of past runs."""

from __future__ import annotations

import logging
import math
import os
import sys
import warnings

from wmtp.errors import UserError


def metric_history(run_id: str, tracking_uri: str | None = None) -> tuple[str, list[dict[str, float]]]:
    """The name of an MLflow run, and what it has logged: {"step": .., metric: value, ..}, in the order of the steps.

    Of several values at one step the newest counts. System metrics, which count steps of their own, are left out.

    Raises:
        UserError: no such run, or no answer from `tracking_uri` (none: MLFLOW_TRACKING_URI, or MLflow's own default).
    """
    quiet()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    rows: dict[int, dict[str, float]] = {}
    try:
        client = MlflowClient(tracking_uri)
        run = client.get_run(run_id)
        for key in (key for key in run.data.metrics if not key.startswith("system/")):
            for metric in sorted(client.get_metric_history(run_id, key), key=lambda metric: metric.timestamp):
                # MLflow's databases hold the largest number there is in place of an infinite one.
                infinite = abs(metric.value) >= sys.float_info.max
                value = math.copysign(math.inf, metric.value) if infinite else metric.value
                rows.setdefault(metric.step, {"step": metric.step})[key] = value
    except MlflowException as error:
        where = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or "MLflow's default store"
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"mlflow:{run_id}: can't be read from {where} ({reason}); --tracking-uri says where") from error
    return run.info.run_name or run_id, [rows[step] for step in sorted(rows)]


def quiet() -> None:
    """Keeps MLflow's own talk off the terminal, its waits short, and its usage reports at home."""
    for name, value in {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }.items():
        os.environ.setdefault(name, value)
    for module in ("mlflow", "alembic", "sqlalchemy"):
        warnings.filterwarnings("ignore", module=module)
    logging.getLogger("alembic").setLevel(logging.ERROR)

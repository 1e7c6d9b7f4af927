"""What people look at: figures, the HTML page, the MLflow dashboard. Every number comes from the tidy tables."""

import os

# MLflow reports usage to its makers unless told not to; nothing leaves the machines that hold patients' data.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

"""What people look at: figures, the HTML page, the MLflow dashboard. Every number comes from the tidy tables."""

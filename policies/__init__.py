"""The decision and its mathematics; knows no Ray, MLflow, HTTP or database."""

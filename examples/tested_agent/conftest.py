pytest_plugins = ["step_exporter.testing"]

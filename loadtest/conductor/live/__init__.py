"""How the run at hand stands, for whoever looks while it goes on: on the exporter and on the Capacity tab."""

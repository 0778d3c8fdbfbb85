"""The stages of a run: a table in, a table out. With pipeline.py, cli.py and jobs/ the only code that imports Ray."""

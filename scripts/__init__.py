"""The commands behind `make`; `python -m scripts.<name> --help` lists the options of each."""

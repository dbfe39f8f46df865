"""`python -m metadropout_nb` is `metadropout`."""

from metadropout_nb.cli import app

if __name__ == "__main__":
    app(prog_name="metadropout")

"""The studio: paint, type, mask and see, in a browser, on this machine.

In Jupyter or Colab one cell is enough: `from studio import launch; launch()`.
"""


def launch(port: int | None = None, share: bool = False) -> None:
    """Open the page on 127.0.0.1.

    Args:
        port: of the page; by default the first free one from 7860.
        share: also behind a public address, through a tunnel of gradio's makers.
    """
    try:
        import gradio  # noqa: F401  (here: it takes seconds, and is an extra)
    except ImportError as error:
        raise ImportError("the studio needs gradio: pip install -e '.[studio]'") from error
    from studio import page

    page.serve(port, share)

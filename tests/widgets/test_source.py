from mmlab.widgets import source as module
from mmlab.widgets.source import Source, source_without_docstring


def sample(x):
    """A docstring.

    Of two paragraphs.
    """
    # a comment stays
    return x + 1


def test_docstring_goes_and_comments_stay():
    text = source_without_docstring(sample)
    assert text == "def sample(x):\n    # a comment stays\n    return x + 1"


def test_a_function_without_docstring_is_shown_whole():
    def bare(x):
        return "not a docstring" + x

    assert source_without_docstring(bare) == ('def bare(x):\n    return "not a docstring" + x')


def test_says_where_the_code_lives():
    text = str(Source(module.source_without_docstring))
    assert text.startswith("# mmlab/widgets/source.py, line ")
    assert "def source_without_docstring" in text


def test_the_shown_code_runs():
    scope = {}
    exec(source_without_docstring(sample), scope)
    assert scope["sample"](1) == 2


def test_markdown_is_a_python_block():
    bundle = Source(sample)._repr_mimebundle_()
    assert bundle["text/markdown"].startswith("```python\n") and bundle["text/markdown"].endswith(
        "\n```"
    )

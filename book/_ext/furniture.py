"""The furniture of a chapter as directives: paper card, prediction, quiz, erratum, verdicts.

Everything is plain HTML that works with no script: a quiz is native radio buttons and a
``<details>`` whose feedback follows the chosen answer through the style sheet. ``how_to_use.md``
shows each directive.
"""

from __future__ import annotations

import re

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.locale import get_translation
from sphinx.util.docutils import SphinxDirective, SphinxRole

translate = get_translation("mmlab")


def _(message: str) -> str:
    """The message in the language of the build; Sphinx's own stand-in is not quite a string."""
    return str(translate(message))


# A verdict is a symbol, a word and a colour, so that none of them stands alone.
VERDICTS = {
    "true": "✓",
    "imprecise": "≈",
    "wrong": "✕",
    "confirmed": "✓",
    "refuted": "✕",
    "no difference seen": "=",
}
# mmlab.css has one rule for each possible answer.
MAX_ANSWERS = 6
SPLIT = re.compile(r"^\+\+\+\s*$")
ANSWER = re.compile(r"^[-*] \[( |x|X)\] (.+)$")


class Tag(nodes.General, nodes.Element):
    """An HTML element with block content; ``tag`` is its name, ``html`` its attributes."""


class InlineTag(nodes.General, nodes.TextElement):
    """An HTML element with inline content, which translators can reach."""


def visit_tag(translator, node) -> None:
    translator.body.append(translator.starttag(node, node["tag"], "", **node.get("html", {})))


def depart_tag(translator, node) -> None:
    if node["tag"] != "input":
        translator.body.append(f"</{node['tag']}>" + "\n" * isinstance(node, Tag))


def tag(name: str, *children, classes=(), ids=(), **html) -> Tag:
    """A block element: ``tag("aside", child, classes=["mmlab-card"], role="note")``."""
    return Tag(
        "",
        *children,
        tag=name,
        classes=list(classes),
        ids=list(ids),
        html=html,
    )


def text(name: str, *children, classes=(), **html) -> InlineTag:
    """An inline element; strings become text nodes."""
    children = [nodes.Text(c) if isinstance(c, str) else c for c in children]
    return InlineTag("", "", *children, tag=name, classes=list(classes), html=html)


def verdict_badge(verdict: str) -> InlineTag:
    """The badge of one of ``VERDICTS``: symbol and word."""
    symbol = text("span", VERDICTS[verdict], **{"aria-hidden": "true"})
    classes = ["mmlab-verdict", "mmlab-verdict-" + verdict.split()[0]]
    return text("span", symbol, " " + _(verdict), classes=classes)


def verdict_option(argument: str) -> str:
    """One of ``VERDICTS``, or a ``ValueError`` that lists them."""
    return directives.choice(argument, list(VERDICTS))


class VerdictRole(SphinxRole):
    """``{verdict}`wrong```."""

    def run(self):
        """Return the badge, or an error that lists the verdicts there are."""
        if self.text not in VERDICTS:
            allowed = ", ".join(VERDICTS)
            message = f"verdict {self.text!r} is not one of: {allowed}"
            return [], [self.inliner.reporter.error(message, line=self.lineno)]
        return [verdict_badge(self.text)], []


class Furniture(SphinxDirective):
    """What the directives share: parsing inline and block content."""

    has_content = True
    final_argument_whitespace = True

    def inline(self, source: str) -> list[nodes.Node]:
        """Parse one line of Markdown."""
        children, messages = self.state.inline_text(source, self.lineno)
        return children + messages

    def sentence(self, name: str, source: str, classes=(), **html) -> InlineTag:
        """One line of Markdown inside an inline element."""
        element = text(name, *self.inline(source), classes=classes, **html)
        self.set_source_info(element)
        return element

    def block(self, lines: StringList, name="div", classes=(), offset=0, **html) -> Tag:
        """Parse ``lines`` as Markdown inside a block element."""
        element = tag(name, classes=classes, **html)
        self.state.nested_parse(lines, self.content_offset + offset, element)
        return element

    def split(self) -> tuple[StringList, StringList, int]:
        """The content before and after a line ``+++``, and where the second part starts."""
        for index, line in enumerate(self.content):
            if SPLIT.match(line):
                return (
                    self.content[:index],
                    self.content[index + 1 :],
                    index + 1,
                )
        raise self.error(f"The {self.name} directive needs a line '+++' before its answer.")


class PaperCard(Furniture):
    """The card at the head of a chapter: the paper, and what the reader will be able to do."""

    required_arguments = 1
    option_spec = {  # noqa: RUF012 - docutils' own form
        name: directives.unchanged_required
        for name in (
            "authors",
            "venue",
            "arxiv",
            "code",
            "needs",
            "cpu",
            "gpu",
        )
    }

    def facts(self) -> Tag:
        """The options as a list of terms and descriptions."""
        labels = {
            "authors": _("Authors"),
            "venue": _("Published"),
            "arxiv": _("arXiv"),
            "code": _("Official code"),
            "needs": _("You need"),
            "cpu": _("On two CPU cores"),
            "gpu": _("On a GPU"),
        }
        rows = tag("dl", classes=["mmlab-facts"])
        for name, label in labels.items():
            if name in self.options:
                value = self.options[name]
                if name == "arxiv":
                    value = f"[{value}](https://arxiv.org/abs/{value})"
                rows += tag("div", text("dt", label), self.sentence("dd", value))
        return rows

    def run(self):
        """Return the card."""
        title = self.sentence("p", self.arguments[0], classes=["mmlab-card-title"])
        label = text("p", _("The paper"), classes=["mmlab-kicker"])
        card = tag("aside", label, title, self.facts(), classes=["mmlab-card"])
        card["html"]["aria-label"] = _("About this chapter")
        card += self.block(self.content, classes=["mmlab-card-goals"])
        return [card]


class Predict(Furniture):
    """A question the reader answers before the reveal."""

    required_arguments = 1

    def run(self):
        """Return the question with its folded answer."""
        question, answer, offset = self.split()
        body = tag("section", classes=["mmlab-predict"])
        body["html"]["aria-label"] = _("Predict")
        body += text("p", _("Predict first"), classes=["mmlab-kicker"])
        body += self.sentence("p", self.arguments[0], classes=["mmlab-prompt"])
        body += self.block(question)
        reveal = tag("details", text("summary", _("Reveal")))
        reveal += self.block(answer, offset=offset)
        body += reveal
        return [body]


class Question(Furniture):
    """One question with answers ``- [ ]`` / ``- [x]``, each with its own indented feedback."""

    required_arguments = 1

    def answers(self, lines: StringList) -> list[tuple[bool, str, StringList]]:
        """Split into (right or not, text, feedback lines)."""
        found: list[tuple[bool, str, StringList]] = []
        for line in lines:
            match = ANSWER.match(line)
            if match:
                found.append((match[1] != " ", match[2], StringList()))
            elif line.strip() and not found:
                raise self.error(f"Expected an answer '- [ ] …' or '- [x] …', found {line!r}.")
            elif found:
                found[-1][2].append(line.strip(), self.env.docname)
        if sum(right for right, *_rest in found) != 1 or not 2 <= len(found) <= MAX_ANSWERS:
            raise self.error(f"A question has 2 to {MAX_ANSWERS} answers, one of them marked [x].")
        return found

    def choice(self, group: str, index: int, source: str) -> Tag:
        """A radio button and its label."""
        name = f"{group}-{index}"
        button = tag(
            "input",
            classes=[f"mmlab-answer-{index}"],
            ids=[name],
            type="radio",
        )
        button["html"]["name"] = group
        label = self.sentence("label", source, **{"for": name})
        return tag("div", button, label, classes=["mmlab-choice"])

    def feedback(self, index: int, right: bool, lines: StringList) -> Tag:
        """What is said to the reader who chose this answer."""
        mark = text("span", "✓ " if right else "✕ ", **{"aria-hidden": "true"})
        word = text("strong", mark, _("Right.") if right else _("Not this one."))
        word["classes"] = ["mmlab-right" if right else "mmlab-not"]
        block = tag(
            "div",
            text("p", word),
            classes=["mmlab-feedback", f"mmlab-feedback-{index}"],
        )
        self.state.nested_parse(lines, self.content_offset, block)
        return block

    def run(self):
        """Return the question, its answers and the folded check."""
        choices, explanation, offset = self.split()
        group = f"mmlab-question-{self.env.docname.replace('/', '-')}-"
        group += str(self.env.new_serialno("mmlab-question"))
        field = tag("fieldset", classes=["mmlab-question"])
        field += self.sentence("legend", self.arguments[0])
        check = tag("details", text("summary", _("Check the answer")))
        replies = tag("div", **{"aria-live": "polite"})
        replies += text(
            "p",
            _("Choose an answer first."),
            classes=["mmlab-unanswered"],
        )
        for index, (right, source, lines) in enumerate(self.answers(choices), 1):
            field += self.choice(group, index, source)
            replies += self.feedback(index, right, lines)
        check += [
            replies,
            self.block(explanation, classes=["mmlab-because"], offset=offset),
        ]
        field += check
        return [field]


class Quiz(Furniture):
    """A set of questions."""

    optional_arguments = 1

    def run(self):
        """Return the questions inside one box."""
        title = self.arguments[0] if self.arguments else _("Check yourself")
        heading = self.sentence("p", title, classes=["mmlab-kicker"])
        quiz = self.block(self.content, "section", ["mmlab-quiz"])
        quiz["html"]["aria-label"] = title
        quiz.insert(0, heading)
        return [quiz]


class Erratum(Furniture):
    """What the notes say about something, and what is true."""

    required_arguments = 1
    option_spec = {  # noqa: RUF012 - docutils' own form
        "verdict": verdict_option,
        "notes": directives.unchanged_required,
    }

    def run(self):
        """Return the claim with its verdict, then the correction."""
        for option in self.option_spec:
            if option not in self.options:
                raise self.error(f"The erratum directive needs the option ':{option}:'.")
        name = self.arguments[0]
        head = text("p", text("span", name, classes=["mmlab-claim-id"]), " ")
        head += verdict_badge(self.options["verdict"])
        head["classes"] = ["mmlab-kicker"]
        claim = tag(
            "p",
            text("span", _("The notes say: ")),
            classes=["mmlab-claim"],
        )
        claim += self.sentence("span", self.options["notes"])
        box = tag("aside", head, claim, classes=["mmlab-erratum"])
        box["html"]["aria-label"] = _("Erratum") + f" {name}"
        box += self.block(self.content)
        return [box]


def pass_through(translator, node) -> None:
    """Other formats show the content alone."""


def setup(app: Sphinx) -> dict:
    """Called by Sphinx."""
    plain = (pass_through, pass_through)
    others = dict.fromkeys(("latex", "text", "man", "texinfo"), plain)
    for node in (Tag, InlineTag):
        app.add_node(node, html=(visit_tag, depart_tag), **others)
    app.add_directive("paper-card", PaperCard)
    app.add_directive("predict", Predict)
    app.add_directive("quiz", Quiz)
    app.add_directive("question", Question)
    app.add_directive("erratum", Erratum)
    app.add_role("verdict", VerdictRole())
    return {
        "parallel_read_safe": True,
        "parallel_write_safe": True,
        "version": "1",
    }

"""Every docstring, message and name makes sense to a reader who comes from a search and not from the line above.

The rules are in CONTRIBUTING.md under "Words". A file breaks one when a docstring begins by pointing at its
neighbour, when a public function's docstring has no verb near its beginning, when a name says nothing, or when an
error or a help text is no sentence.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from project_files import get_called_name

ROOT = Path(__file__).parents[1]
FOLDERS = ("engine", "indexer", "training", "ui", "tests")
FILES = [
    "qseek.py",
    *sorted(path.relative_to(ROOT).as_posix() for name in FOLDERS for path in (ROOT / name).rglob("*.py")),
]

# Names that say nothing about what they hold, when they stand alone.
_EMPTY_NAMES_TEXT = """
    found got how kept lies made one own rest said some what where
"""
EMPTY_NAMES = frozenset(_EMPTY_NAMES_TEXT.split())

# Beginnings that only make sense after reading another docstring.
POINTING = re.compile(r"(The same|As|Of|Those|These|It|Likewise|Ditto|See|So many|What|How)\b")

# Verbs with which a function's docstring may begin. Add a plain one where it is missing.
_VERBS_TEXT = """
    accept accumulate caption hear add adopt advance align allow answer append apply ask assemble assert attempt attend
    augment average begin bind block bound bring build cache call cancel cap carry cast change check choose
    claim clean clear click clip close collect combine commit compact compare compile complete compute
    concatenate configure connect contrast convert copy count create crop cut decide declare decode delete
    demand describe digest discard display distil divide do download draw drop embed empty encode end enter estimate
    evaluate exchange expand expect explain export extend fail fetch fill find fine-tune finish fit flatten flush fold
    follow forget format forward freeze gather generate get give go group guess halve hand handle hash have hide
    hold import index initialise insert install interpolate interrupt invert iterate join keep kill label launch
    lay leave let limit link list load lock log look lose lower make map mark mask match mean measure merge mix
    move multiply name normalise note offer open order outline pack pad parse pass paste pick place plot pool
    prefer prefix prepare print process produce project promise prove prune publish pull push put raise rank
    read rebuild receive recompute record reduce refresh refuse register release remember remove rename render
    repeat replace reply report require rerank reset resize resolve restore resume retrieve return rotate round
    rewrite run sample save say scale scan score search see seed select send serve set shard share shorten show shrink
    shuffle sit skip sleep solve sort speak split spread squash stack stand start state stay step stop store
    stream strip submit subtract sum switch sync take teach tell test tie time tokenize train transform translate
    transpose trim try tune turn unlock unpack untie update upsert use validate verify view wait walk warn wrap
    write yield zero
    escape paint
"""
VERBS = frozenset(_VERBS_TEXT.split())
_FORMS_OF_BE_AND_HAVE_TEXT = """
    are can cannot do does has have is may must was were will
"""
FORMS_OF_BE_AND_HAVE = frozenset(_FORMS_OF_BE_AND_HAVE_TEXT.split())

# Where a rule does not hold, and why: (file, name) -> reason.
_REASON = "a reason, which is shown after the path of the sample and a colon"
EXCEPTIONS: dict[tuple[str, str], str] = {
    ("training/stages/stage2.py", "its caption is "): _REASON,
    ("training/stages/stage2.py", "with its answer it has more than "): _REASON,
    ("training/stages/stage2.py", "it has more than the "): _REASON,
    ("ui/reports/writing_report.py", "how"): "a key of the JSON that `qseek evaluate --json` prints",
}


def parse(file: str) -> ast.Module:
    """Return the syntax tree of a file of the project."""
    return ast.parse((ROOT / file).read_text())


def docstrings(tree: ast.Module) -> Iterator[tuple[str, ast.AST, str]]:
    """Yield (name, node, docstring) of the module, its classes and functions, and of its documented constants."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring is not None:
                yield getattr(node, "name", "the module"), node, docstring
        body = getattr(node, "body", None)
        if isinstance(node, ast.Module | ast.ClassDef) and body:
            for assignment, text in pairwise(body):
                if isinstance(assignment, ast.Assign | ast.AnnAssign) and is_text(text):
                    yield ast.unparse(assignment).split()[0].rstrip(":"), assignment, text.value.value


def is_text(node: ast.stmt) -> bool:
    """Return whether a statement is a string that stands alone."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def has_verb(docstring: str) -> bool:
    """Return whether one of the first three words is a verb: as a command, or in the third person."""
    words = [word.strip(".,:;()`'\"").lower() for word in docstring.split()[:3]]
    return words[0] in VERBS or any(is_third_person(word) for word in words)


def is_third_person(word: str) -> bool:
    """Return whether a word is a form such as "reads", "finishes" or "is"."""
    stems = (word.removesuffix("s"), word.removesuffix("es"), word.removesuffix("ies") + "y")
    return word in FORMS_OF_BE_AND_HAVE or (word.endswith("s") and any(stem in VERBS for stem in stems))


def bad_docstrings(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield (name, what is wrong) of every docstring that breaks a rule."""
    for name, node, docstring in docstrings(tree):
        first = docstring.split("\n\n")[0].strip()
        if POINTING.match(first):
            yield name, f"its docstring begins by pointing elsewhere: {first[:60]!r}"
        if not re.match(r"[A-Z0-9`\"'(%-]", first):
            yield name, f"its docstring does not begin with a capital letter: {first[:60]!r}"
        if first.startswith("Whether"):
            yield name, f"its docstring is half a sentence (write `Return whether`): {first[:60]!r}"
        is_public = isinstance(node, ast.FunctionDef) and not name.startswith(("_", "test_"))
        if is_public and not has_verb(first):
            yield name, f"its docstring has no verb among its first three words: {first[:60]!r}"


def bad_names(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield (name, what is wrong) of every function, parameter, variable and attribute with an empty name."""
    for node in ast.walk(tree):
        is_stored = isinstance(getattr(node, "ctx", None), ast.Store)
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.arg(arg=name):
                pass
            case ast.Name(id=name) | ast.Attribute(attr=name) if is_stored:
                pass
            case _:
                continue
        if name.strip("_") in EMPTY_NAMES:
            yield name, f"line {node.lineno}: the name {name!r} does not say what is in it"


def sentence_parts(node: ast.expr) -> tuple[str | None, str | None]:
    """Return how a text begins and how it ends, None where a value stands there that is only known later."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value, node.value
    if isinstance(node, ast.JoinedStr) and node.values:
        first, last = node.values[0], node.values[-1]
        return sentence_parts(first)[0], sentence_parts(last)[1]
    return None, None


def messages(tree: ast.Module) -> Iterator[tuple[int, ast.expr]]:
    """Yield (line, text) of every error that is raised or returned, and of every help text of an option.

    A PhotoError is left out: its text is a reason that is shown after the photo's path and a colon.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = get_called_name(node)
            is_error = called.endswith(("Error", "Exception")) and called not in (
                "PhotoError",
                "KeyError",
                "AttributeError",
            )
            if is_error and node.args:
                yield node.lineno, node.args[0]
            for keyword in node.keywords:
                if keyword.arg == "help":
                    yield node.lineno, keyword.value


def bad_messages(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield (text, what is wrong) of every error or help text that is no sentence; a name_like_this may begin one."""
    for line, text in messages(tree):
        begins, ends = sentence_parts(text)
        if begins is not None and not re.match(r"[A-Z0-9`\"'(-]|\w+_|\w+=|[\w.]+ is $", begins):
            yield begins, f"line {line}: a message begins with a capital letter: {begins[:60]!r}"
        if ends is not None and not ends.rstrip().endswith((".", "?", "!", ":")):
            yield ends, f"line {line}: a message ends with a full stop: {ends[-60:]!r}"


def without_exceptions(file: str, problems: Iterator[tuple[str, str]]) -> list[str]:
    """Return the problems of a file in words, without those that EXCEPTIONS allows."""
    return [problem for name, problem in problems if (file, name) not in EXCEPTIONS]


@pytest.mark.parametrize("file", FILES)
def test_docstrings_make_sense_alone(file):
    assert without_exceptions(file, bad_docstrings(parse(file))) == []


@pytest.mark.parametrize("file", FILES)
def test_names_say_what_is_in_them(file):
    assert without_exceptions(file, bad_names(parse(file))) == []


@pytest.mark.parametrize("file", [file for file in FILES if not file.startswith("tests/")])
def test_messages_and_help_texts_are_sentences(file):
    assert without_exceptions(file, bad_messages(parse(file))) == []


def test_every_exception_is_still_needed():
    problems = {
        (file, name)
        for file in {file for file, _ in EXCEPTIONS}
        for find in (bad_docstrings, bad_names, bad_messages)
        for name, _ in find(parse(file))
    }
    assert set(EXCEPTIONS) <= problems


@pytest.mark.parametrize(
    "code",
    [
        'def pad():\n    """The same for rows."""',
        'class Rows:\n    """Those of a table."""',
        'LIMIT = 3\n"""Of the rows."""',
        'def rows():\n    """Rows that a table holds."""',
        'def is_full():\n    """Whether a table is full."""',
        'def read():\n    """what a table holds is read."""',
    ],
)
def test_a_docstring_that_breaks_a_rule_is_found(code):
    assert list(bad_docstrings(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        'def read():\n    """Read the rows of a table."""',
        'def score():\n    """A score is higher for a better hit."""',
        'def _rows():\n    """Rows that a table holds."""',
        'class Rows:\n    """Rows that a table holds."""',
    ],
)
def test_a_plain_docstring_is_accepted(code):
    assert not list(bad_docstrings(ast.parse(code)))


@pytest.mark.parametrize(
    "code", ["one = 1", "def f(what): ...", "def found(): ...", "self.kept = 2", "[x for own in y]"]
)
def test_an_empty_name_is_found(code):
    assert list(bad_names(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        'raise DataError("no such file.")',
        'raise DataError(f"{path} is no file")',
        'option("--top", help="how many hits")',
    ],
)
def test_a_message_that_is_no_sentence_is_found(code):
    assert list(bad_messages(ast.parse(code)))

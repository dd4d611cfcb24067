"""Data sets of a few rows of our own, in the files that tasks read."""

import gzip

from tests.support.benchmarks import write_benchmarks
from tests.support.problems import write_problems
from tests.support.programs import write_programs
from tests.support.shop import write_shop

SENTENCES = (
    ("A dog runs.", "Ein Hund rennt.", "Un chien court."),
    ("A blue bus stops.", "Ein blauer Bus hält.", "Un bus bleu s'arrête."),
    ("Two cats play.", "Zwei Katzen spielen.", "Deux chats jouent."),
    ("A man reads a book.", "Ein Mann liest ein Buch.", "Un homme lit un livre."),
    ("It is raining.", "Es regnet.", "Il pleut."),
)
MESSAGES = (
    ('I want my money back, "now"', "REFUND"),
    ("where do I change the shipping address", "SHIPPING_ADDRESS"),
    ("cancel my order, please", "ORDER"),
)


def write_data(directory):
    """All of it; the held-out splits hold the rows in reverse."""
    for split, rows in (("train", SENTENCES), ("test_2016_flickr", SENTENCES[::-1])):
        for column, language in enumerate(("en", "de", "fr")):
            write_sentences(directory, f"{split}.{language}", [row[column] for row in rows])
    for split, rows in (("train", MESSAGES), ("test", MESSAGES[::-1])):
        write_messages(directory, split, rows)
    write_benchmarks(directory)
    write_programs(directory)
    write_shop(directory / "tau-bench" / "retail")
    return write_problems(directory)


def write_sentences(directory, name, lines):
    file = directory / "multi30k" / f"{name}.gz"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))


def write_messages(directory, split, rows):
    file = directory / "bitext" / f"{split}.csv"
    file.parent.mkdir(exist_ok=True)
    lines = [f'"{text.replace(chr(34), chr(34) * 2)}",some_intent,{category}\n' for text, category in rows]
    file.write_text("utterance,intent,category\n" + "".join(lines))

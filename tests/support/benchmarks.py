"""GLUE and SuperGLUE in a few rows of our own, in the files that the tasks read."""

import json

TEXTS = tuple(f"The {animal} sleeps." for animal in ("ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis"))
"""Enough of them that a division leaves some on both sides."""
PASSAGE = "Ann and Bob met in Paris.\n@highlight\nBob came by train"
NAMES = ("Ann", "Bob", "Paris")

TABLES = {
    "sst2/train.tsv": "label\tsentence\r\n0\tlong and \"dull\r\n1\ta joy\r\n",
    "sst2/dev.tsv": "label\tcontent\n1\ta small wonder\n",
    "cola/train.tsv": "x1\t1\t\tShe sleeps.\nx1\t0\t*\tSleeps she the.\n",
    "cola/dev_in_domain.tsv": "x1\t0\t*\tThem sleeps.\n",
    "cola/dev_out_of_domain.tsv": "x2\t1\t\tThey sleep.\n",
    "mrpc/train.txt": '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tHe "won".\tHe was first.\n',
    "mrpc/test.txt": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t7\t8\tHe won.\tHe left.\n",
    "stsb/train.csv": 'A man runs.,"A man, he runs.",4.6\n',
    "stsb/dev.csv": "A man runs.,It rains.,0.0\n",
    "qnli/dev.tsv": "index\tquestion\tsentence\tlabel\n"
    + "".join(f"{number}\tWho is {number}?\t{text}\tentailment\n" for number, text in enumerate(TEXTS)),
    "wnli/train.tsv": "index\tsentence1\tsentence2\tlabel\n0\tAl saw Bo. He ran.\tBo ran.\t1\n",
    "wnli/val.tsv": "7\tAl hit Bo. He fell.\tAl fell.\t0\n",
    "wnli/dev.tsv": "index\tsentence1\tsentence2\tlabel\n0\tAl saw Bo. He ran.\tAl ran.\t0\n",
}  # fmt: skip


def _pair(label):
    return {"premise": "It rains.", "hypothesis": "It is dry.", "label": label}


def _entity(name):
    start = PASSAGE.index(name)
    return {"start": start, "end": start + len(name) - 1}


def _copa(asks, label):
    return {"premise": "It rained.", "choice1": "He got wet.", "choice2": "He sang.", "question": asks, "label": label}


_RECORD = {
    "passage": {"text": PASSAGE, "entities": [_entity(name) for name in (*NAMES, "Bob")]},
    "qas": [{"query": "@placeholder took the train.", "answers": [{"text": "Bob"}, {"text": "Bob"}]}],
}
_WIC = {"word": "bank", "sentence1": "The bank of a river.", "sentence2": "A bank lends.", "label": False}
_WSC = {"text": "Al saw Bo. He ran.", "target": {"span1_text": "Bo", "span2_text": "He"}, "label": True}


def _multirc(text):
    answers = [{"text": "It sleeps", "label": 1}, {"text": "It eats", "label": 0}]
    return {"passage": {"text": text, "questions": [{"question": "What does it do?", "answers": answers}] * 2}}


OBJECTS = {
    "mnli/dev_matched.jsonl": [_pair("neutral") | {"premise": text} for text in TEXTS],
    "rte/train.jsonl": [_pair("not_entailment"), _pair("entailment")],
    "rte/val.jsonl": [_pair("entailment")],
    "cb/train.jsonl": [_pair("contradiction")],
    "cb/val.jsonl": [_pair("neutral")],
    "superglue_fewshot32/BoolQ/val.jsonl": [{"question": "is it so", "passage": t, "label": True} for t in TEXTS],
    "superglue_fewshot32/MultiRC/val.jsonl": [_multirc(text) for text in TEXTS],
    "superglue_fewshot32/ReCoRD/train.jsonl": [_RECORD],
    "superglue_fewshot32/ReCoRD/dev32.jsonl": [_RECORD],
    "copa/train.jsonl": [_copa("effect", 0)],
    "copa/val.jsonl": [_copa("cause", 1)],
    "wic/train.jsonl": [_WIC],
    "wic/val.jsonl": [_WIC],
    "wsc/train.jsonl": [_WSC],
    "wsc/val.jsonl": [_WSC],
}


def write_benchmarks(directory):
    """All of it."""
    lines = {name: "".join(f"{json.dumps(row)}\n" for row in rows) for name, rows in OBJECTS.items()}
    for name, content in (TABLES | lines).items():
        write_file(directory, name, content)


def write_file(directory, name, content):
    file = directory / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content, encoding="utf-8", newline="")

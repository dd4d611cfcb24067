"""Problems of our own making, in the files of the data sets of mathematics and instructions."""

import json

GSM8K = (
    {
        "question": "A box holds 12 pens. How many do 100 boxes hold?",
        "answer": "100*12 = <<100*12=1200>>1200\n#### 1,200",
    },
    {"question": "It was 3 degrees and fell by 5. How warm is it?", "answer": "3-5 = <<3-5=-2>>-2\n#### -2"},
)
MATH_TRAIN = (
    {"problem": "What is $1+1$?", "solution": "It is $\\boxed{2}$."},
    {"problem": "What is half of $x^{2}$?", "solution": "Not $\\boxed{x}$, but $\\boxed{\\frac{x^{2}}{2}}$."},
    {"problem": "What is $2 + 2$?", "solution": "It is $\\boxed 4$."},
)
MATH_HELD_OUT = ({"problem": "What is  $1+1$ ?", "answer": "2"}, {"problem": "What is $3-4$?", "answer": "-1"})
AIME = ({"id": 1, "problem": "Find $n$ with $n^2 = 10201$.", "answer": "101"},)
AMC = ({"id": 1, "problem": "Find $m$ with $2m = 7$.", "answer": 3.5}, {"id": 2, "problem": "Count.", "answer": 27.0})
STORIES = (
    "picked pears in the old garden and sold some",
    "walked along a quiet river to see boats",
    "baked small loaves for every child at school",
    "counted red cars that stood behind his house",
    "read pages about whales before going to sleep",
    "paid for two tickets and a warm drink",
    "planted tulips near the fence of her yard",
    "found shells on sand that nobody had searched",
    "filled baskets with apples until it was dark",
    "gave marbles to friends who had lost theirs",
)
COUNTDOWN = ({"numbers": [3, 5, 7], "target": 26, "solution": "3 * 7 + 5", "question": "Make 26."},) * 2
IFEVAL = tuple(
    {
        "key": number,
        "prompt": f"Write about {story}. No commas, 5 words at most.",
        "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
        "kwargs": [{"num_words": None}, {"num_words": 6, "relation": "less than"}],
    }
    for number, story in enumerate(STORIES)
)


def write_problems(directory):
    """All of them."""
    for split in ("train", "test"):
        write_rows(directory / "gsm8k" / f"{split}.jsonl", GSM8K)
        write_rows(directory / "countdown" / f"{split}.jsonl", COUNTDOWN)
    for name, rows in (("math_test1000", MATH_TRAIN), ("math500", MATH_HELD_OUT), ("aime24", AIME), ("amc23", AMC)):
        write_rows(directory / "math" / f"{name}.jsonl", rows)
    write_rows(directory / "ifeval" / "input_data.jsonl", IFEVAL)
    return write_arithmetic(directory)


def write_arithmetic(directory):
    """Each story twice, with other names and numbers, in two collections; three of SVAMP."""
    told = [(f"{name} {story}.", number) for story in STORIES for name, number in (("Ann", 2), ("Bob", 30))]
    asked = "How many were there?"
    asdiv = [{"body": body, "question": asked, "answer": f"{number} (things)"} for body, number in told]
    write_rows(directory / "arith" / "asdiv.jsonl", asdiv)
    for name in ("addsub", "multiarith", "singleeq", "singleop"):
        rows = [{"input": f"{body} {name} , {asked}", "target": float(number)} for body, number in told]
        write_rows(directory / "arith" / f"mawps_{name}.jsonl", rows)
    svamp = [{"ID": "1", "Body": body.rstrip("."), "Question": asked, "Answer": 1.5} for body, _ in told[:3]]
    (directory / "arith" / "svamp.json").write_text(json.dumps(svamp))
    return directory


def write_rows(file, rows):
    """JSON lines."""
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

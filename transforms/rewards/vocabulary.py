"""Whether two models mean the same by a token id."""

import hashlib
import json
from pathlib import Path

from schemas.errors import ModelError


def vocabulary_hash(directory: str) -> str:
    """sha256 of all tokens of a model directory and their ids, the added ones included, as hexadecimal digits.

    How text is cut into tokens does not enter: ids are compared, not tokenizers.

    Raises:
        ModelError: the directory has no readable tokenizer.
    """
    from tokenizers import Tokenizer

    file = Path(directory, "tokenizer.json")
    try:
        vocabulary = Tokenizer.from_str(file.read_text()).get_vocab(with_added_tokens=True)
    except Exception as error:  # tokenizers raises nothing more special
        raise ModelError(f"{file}: no tokenizer can be read: {error}") from error
    listed = json.dumps(sorted(vocabulary.items(), key=lambda item: (item[1], item[0])))
    return hashlib.sha256(listed.encode()).hexdigest()

"""``translation``: captions of photographs from English to German or French (Multi30k), scored by chrF.

Elliott et al. 2016, doi:10.18653/v1/W16-3210. Train is ``train``, held out is ``test_2016_flickr``. Files are as the
data set publishes them: one sentence a line, gzipped.
"""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

from pipelines.tasks.task import Split, Task
from schemas.errors import ConfigError
from schemas.prompts import RewardSpec

_LANGUAGES: Final = {"de": "German", "fr": "French"}
_FILES: Final = {"train": "train", "held_out": "test_2016_flickr"}


class Translation(Task):
    """Example: ``Translation(to="fr")``."""

    name = "translation"
    title = "Multi30k, multi30k/train.LANGUAGE.gz and multi30k/test_2016_flickr.LANGUAGE.gz"

    to: Literal["de", "fr"] = "de"
    """Into which language."""

    @property
    def label(self) -> str:
        """One for each language."""
        return f"{self.name}-{self.to}"

    def files(self, split: Split) -> tuple[str, ...]:
        """The English sentences and their translations, line by line."""
        return tuple(f"multi30k/{_FILES[split]}.{language}.gz" for language in ("en", self.to))

    def rows(self, data: Path, split: Split) -> Iterator[tuple[str, RewardSpec]]:
        """One row a sentence."""
        sources, references = (_read(data / name) for name in self.files(split))
        if len(sources) != len(references):
            raise ConfigError(
                f"{' and '.join(self.files(split))} in {data} have {len(sources)} and {len(references)} lines, "
                "expected as many; fetch them again"
            )
        for source, reference in zip(sources, references, strict=True):
            text = f"Translate into {_LANGUAGES[self.to]}: {source}"
            yield text, RewardSpec(name="chrf", args={"reference": reference})


def _read(file: Path) -> list[str]:
    try:
        text = gzip.decompress(file.read_bytes()).decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: {error}; expected gzipped text, a sentence a line") from error
    lines = [line.strip() for line in text.removesuffix("\n").split("\n")]
    if blank := [number for number, line in enumerate(lines, start=1) if not line]:
        raise ConfigError(f"{file}, line {blank[0]}: blank, expected a sentence")
    return lines

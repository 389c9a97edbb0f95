"""The official caption metrics, with one Java process at a time that is always closed."""

from __future__ import annotations

import importlib.util
import logging
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mmengine.logging import print_log

from pixelsail_mm.errors import ConfigError

CAPTION_METRICS = ('METEOR', 'CIDEr', 'BLEU-1', 'BLEU-2', 'BLEU-3', 'BLEU-4', 'ROUGE-L')
ON_MISSING = ('error', 'skip')

_PACKAGE = 'pycocoevalcap'
_TOKENISER = 'tokenizer/stanford-corenlp-3.4.1.jar'
_METEOR = 'meteor/meteor-1.5.jar'
# Java before version 18 reads bytes in the encoding of the locale.
_UTF8 = '-Dfile.encoding=UTF-8'
_SECONDS_TO_STOP = 5


def build_toolkit(
    metrics: str | Sequence[str], on_missing: str, owner: str, heap: str = '2G'
) -> CaptionToolkit:
    """Build the caption metrics that are wanted and installed.

    Args:
        metrics: Some of :data:`CAPTION_METRICS`.
        on_missing: ``'error'`` or, to leave the values out and say so once, ``'skip'``.
        owner: Who asks, for messages.
        heap: See :class:`CaptionToolkit`.

    Returns:
        The toolkit; one without metrics if they are to be skipped.

    Raises:
        ConfigError: A metric or a setting does not exist, or the package or Java is not installed.
    """
    metrics = (metrics,) if isinstance(metrics, str) else tuple(dict.fromkeys(metrics))
    unknown = [name for name in metrics if name not in CAPTION_METRICS]
    if unknown:
        raise ConfigError(
            f'{owner}: there are no caption metrics {unknown}; choose from {list(CAPTION_METRICS)}'
        )
    if on_missing not in ON_MISSING:
        raise ConfigError(f'{owner}: on_missing must be one of {ON_MISSING}, got {on_missing!r}')
    missing = missing_requirements() if metrics else []
    if not missing:
        return CaptionToolkit(metrics, heap)
    message = f'{owner}: {", ".join(metrics)} cannot be computed without {" and ".join(missing)}'
    if on_missing == 'error':
        raise ConfigError(
            f"{message}; install what is missing, or set on_missing='skip' to leave "
            'these values out'
        )
    print_log(f'{message}; left out', logger='current', level=logging.WARNING)
    return CaptionToolkit((), heap)


def missing_requirements() -> list[str]:
    """List missing requirements of the caption metrics, each with the way to install it."""
    missing = []
    if _package_folder() is None:
        missing.append('the package pycocoevalcap (pip install "pycocoevalcap>=1.2")')
    if shutil.which('java') is None:
        missing.append(
            'Java 8 or later with `java` on the PATH (for example apt-get install '
            'default-jre-headless)'
        )
    return missing


def _package_folder() -> Path | None:
    """Folder of the package; what has its name but not its Java archives is another package."""
    spec = importlib.util.find_spec(_PACKAGE)
    places = [] if spec is None else list(spec.submodule_search_locations or ())
    return next(
        (
            Path(place)
            for place in places
            if all((Path(place) / jar).is_file() for jar in (_TOKENISER, _METEOR))
        ),
        None,
    )


class CaptionToolkit:
    """METEOR 1.5, CIDEr, BLEU-1 to 4 and ROUGE-L as the COCO caption evaluation computes them.

    Texts are tokenised by the Penn Treebank tokeniser of Stanford CoreNLP 3.4.1, lower-cased, and
    lose their punctuation; then the metrics of ``pycocoevalcap`` count. Tokeniser and METEOR are
    Java programs. Never do two run at once, and both end with the ``with`` statement, whatever
    happens inside. The package's own wrappers are not used for them: they write into its folder,
    depend on the locale, and wait forever if METEOR dies.

    Args:
        metrics: Some of :data:`CAPTION_METRICS`.
        heap: Most memory METEOR may take, in Java's spelling. Its paraphrase table fills most of
            the default, and takes about 15 s to load.

    Example:
        >>> with CaptionToolkit(['CIDEr']) as toolkit:  # doctest: +SKIP
        ...     toolkit.compute(['A red dog.'], [['A red dog.', 'A dog.']])
    """

    def __init__(self, metrics: Sequence[str], heap: str = '2G') -> None:
        self.metrics = tuple(metrics)
        self.heap = heap
        self._tokens: dict[str, str] = {}
        self._meteor: _Meteor | None = None

    def __enter__(self) -> CaptionToolkit:
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def close(self) -> None:
        """End METEOR and forget the tokenised texts."""
        self._close_meteor()
        self._tokens.clear()

    def _close_meteor(self) -> None:
        if self._meteor is not None:
            self._meteor.close()
            self._meteor = None

    @property
    def settings(self) -> dict:
        """Settings that the values depend on besides the texts."""
        try:
            found = version(_PACKAGE)
        except PackageNotFoundError:
            found = None
        return dict(
            metrics=list(self.metrics),
            tokeniser='PTB, Stanford CoreNLP 3.4.1',
            meteor='1.5, English, -norm',
            pycocoevalcap=found,
        )

    def compute(
        self, predictions: Sequence[str], references: Sequence[Sequence[str]]
    ) -> dict[str, float]:
        """Score texts.

        Args:
            predictions: One text per sample.
            references: One or several texts per sample.

        Returns:
            The values by name, in the order of ``metrics``. All are fractions in 0..1 but CIDEr,
            which is 0..10 and usually printed times 100.

        Raises:
            RuntimeError: A Java program failed; the message holds what it said.
        """
        if not self.metrics:
            return {}
        self._tokenise([*predictions, *(text for texts in references for text in texts)])
        said = {i: [self._tokens[text]] for i, text in enumerate(predictions)}
        true = {i: [self._tokens[text] for text in texts] for i, texts in enumerate(references)}
        values = _count_words(self.metrics, said, true)
        if 'METEOR' in self.metrics:
            if self._meteor is None:
                self._meteor = _Meteor(_package_folder(), self.heap)
            values['METEOR'] = self._meteor.score(said, true)
        return {name: values[name] for name in self.metrics}

    def _tokenise(self, texts: Iterable[str]) -> None:
        """Add the tokens of texts not seen before, all in one run of the tokeniser."""
        from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS

        new = [text for text in dict.fromkeys(texts) if text not in self._tokens]
        if not new:
            return
        self._close_meteor()
        lines = ''.join(f'{" ".join(text.splitlines())}\n' for text in new)
        done = subprocess.run(
            [
                'java',
                _UTF8,
                '-cp',
                str(_package_folder() / _TOKENISER),
                'edu.stanford.nlp.process.PTBTokenizer',
                '-preserveLines',
                '-lowerCase',
                '-encoding',
                'UTF-8',
            ],
            input=lines.encode('utf-8', 'replace'),
            capture_output=True,
            check=False,
        )
        found = done.stdout.decode('utf-8', 'replace').split('\n')
        if done.returncode or len(found) != len(new) + 1:
            raise RuntimeError(
                f'the PTB tokeniser gave {len(found) - 1} lines for {len(new)} texts and exit code '
                f'{done.returncode}: {done.stderr.decode("utf-8", "replace").strip()[-500:]}'
            )
        for text, line in zip(new, found):
            self._tokens[text] = ' '.join(word for word in line.split() if word not in PUNCTUATIONS)


def _count_words(
    metrics: Sequence[str], said: dict[int, list[str]], true: dict[int, list[str]]
) -> dict[str, float]:
    """The metrics that need no Java, on tokenised texts."""
    values: dict[str, float] = {}
    if 'CIDEr' in metrics:
        from pycocoevalcap.cider.cider import Cider

        # Without a single word in the references the package fails.
        has_words = any(text for texts in true.values() for text in texts)
        values['CIDEr'] = float(Cider().compute_score(true, said)[0]) if has_words else 0.0
    if any(name.startswith('BLEU') for name in metrics):
        from pycocoevalcap.bleu.bleu import Bleu

        scores, _ = Bleu(4).compute_score(true, said, verbose=0)
        values.update({f'BLEU-{n}': float(score) for n, score in enumerate(scores, 1)})
    if 'ROUGE-L' in metrics:
        from pycocoevalcap.rouge.rouge import Rouge

        values['ROUGE-L'] = float(Rouge().compute_score(true, said)[0])
    return values


class _Meteor:
    """The Java program, asked line by line."""

    def __init__(self, folder: Path, heap: str) -> None:
        self._heap = heap
        # A file, since nobody reads along: a full pipe would stop the program.
        self._errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [
                'java',
                _UTF8,
                f'-Xmx{heap}',
                '-jar',
                str(folder / _METEOR),
                '-',
                '-',
                '-stdio',
                '-l',
                'en',
                '-norm',
            ],
            cwd=(folder / _METEOR).parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            encoding='utf-8',
            errors='replace',
        )

    def score(self, said: dict[int, list[str]], true: dict[int, list[str]]) -> float:
        """Score of a corpus: of the summed counts of all samples, not the mean of their scores."""
        counts = [self._ask('SCORE', *true[i], *said[i]) for i in said]
        self._ask('EVAL', *counts)
        for _ in counts[1:]:
            self._read()
        return float(self._read())

    def _ask(self, *parts: str) -> str:
        line = ' ||| '.join(part.replace('|||', ' ') for part in parts)
        try:
            self._process.stdin.write(f'{line}\n')
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise RuntimeError(self._explain('stopped')) from error
        return self._read()

    def _read(self) -> str:
        line = self._process.stdout.readline().strip()
        if not line:
            raise RuntimeError(self._explain('stopped'))
        if line.startswith('Error'):
            raise RuntimeError(self._explain(f'reported "{line}"'))
        return line

    def _explain(self, what: str) -> str:
        self._errors.seek(0)
        said = self._errors.read().decode('utf-8', 'replace').strip()[-500:]
        return f'METEOR (Java with heap={self._heap!r}) {what}; its error output: {said or "none"}'

    def close(self) -> None:
        """End the program: ask by closing its input, then kill."""
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            self._process.wait(_SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

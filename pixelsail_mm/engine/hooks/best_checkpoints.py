"""The best checkpoints of a run by its metrics (``save_best``)."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

from mmengine.dist import all_gather_object, is_main_process

from pixelsail_mm.checkpoints.formats.checkpoint_files import replace_when_complete

#: Which checkpoints are the best, and their scores; beside them.
BEST_FILE = 'best_checkpoints.json'


class BestCheckpoints:
    """Mixed into :class:`PixelCheckpointHook`: keep the best checkpoint of each metric.

    MMEngine saves the iteration a second time, so that it knows of the best one that its
    validation found. Here that is in a small file beside the checkpoints.
    """

    def _best_keys(self, key: str) -> tuple[str, str]:
        """Under which names the message hub has score and path for a metric."""
        end = '' if len(self.key_indicators) == 1 else f'_{key}'
        return f'best_score{end}', f'best_ckpt{end}'

    def _save_best_checkpoint(self, runner, metrics: dict) -> None:
        if not self.save_best:
            return
        if 'auto' in self.key_indicators:
            self._init_rule(self.rules, [next(iter(metrics))])
        for key in self.key_indicators:
            score_key, path_key = self._best_keys(key)
            self._settle(runner)
            info = runner.message_hub.runtime_info
            best, score = info.get(score_key), metrics[key]
            if score is None or math.isnan(score):
                continue
            if best is not None and not self.is_better_than[key](score, best):
                continue
            step = runner.epoch if self.by_epoch else runner.iter
            name = f'best_{key}_{self.filename_tmpl.format(step)}'.replace('/', '_')
            path = os.path.join(self.out_dir, name)
            runner.logger.info(f'best so far, {key} {score:0.4f}: saving {name}')
            self._write(
                runner,
                path,
                dict(epoch=runner.epoch, iter=runner.iter),
                infos={score_key: score, path_key: path},
                outdated=[info.get(path_key)],
                best=True,
            )

    def _list_best(self, runner) -> Callable[[], None]:
        """Give a function that writes the list as it is now."""
        info = runner.message_hub.runtime_info
        found = {key: value for key, value in info.items() if key.startswith('best_')}
        path = os.path.join(self.out_dir, BEST_FILE)

        def write() -> None:
            with replace_when_complete(path) as unfinished:
                Path(unfinished).write_text(json.dumps(found, indent=1, default=float) + '\n')

        return write

    def _recall_best(self, runner) -> None:
        """Read the list; what the resumed checkpoint says may be older."""
        if not self.save_best:
            return
        file, found = Path(self.out_dir) / BEST_FILE, None
        if is_main_process() and file.is_file():
            try:
                found = dict(json.loads(file.read_text()))
            except (OSError, ValueError, TypeError) as error:
                runner.logger.warning(f'{file} cannot be read ({error}); it is written anew')
        found = all_gather_object(found)[0] or {}
        for score, path in map(self._best_keys, self.key_indicators):
            if score in found and path in found:
                # By its name: the work directory may have been moved.
                best = os.path.join(self.out_dir, os.path.basename(str(found[path])))
                if os.path.exists(best):
                    self._update(runner, {score: found[score], path: best})

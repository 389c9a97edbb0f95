"""Base of all readers: the index of a file's items, checks of files."""

from __future__ import annotations

import logging
import os.path as osp
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.dataset.base_dataset import force_full_init
from mmengine.logging import print_log

from pixelsail_mm.datasets.files.annotation_files import (
    find_file,
    image_fields,
    iter_json,
    require_keys,
    require_paths,
)
from pixelsail_mm.datasets.files.image_folders import absent_choices, find_photo, require_images
from pixelsail_mm.datasets.files.image_keys import image_key, read_image_keys
from pixelsail_mm.datasets.files.index_cache import (
    IndexCache,
    fingerprint,
    items_in_memory,
    read_item,
    without_garbage_collection,
)
from pixelsail_mm.datasets.files.skip_counter import SkipCounter
from pixelsail_mm.datasets.sample_source import Record, SampleSource
from pixelsail_mm.datasets.token_lengths import LengthMeter, measure_lengths
from pixelsail_mm.errors import AnnotationError, BadSampleError
from pixelsail_mm.registry import DATASETS, TRANSFORMS

# What is set on a reader and does not change its items.
_NOT_PART_OF_THE_INDEX = frozenset(
    {
        'index_cache',
        'keeps_unreadable',
        'pipeline',
        'max_refetch',
        'data_list',
        'data_bytes',
        'data_address',
        'serialize_data',
        '_fully_initialized',
        '_modality_length',
        '_num_logged',
        '_skips',
        '_notes',
    }
)


def build_pipeline(pipeline: Sequence[Mapping | Callable]) -> list[Callable]:
    """Build transforms from our registry, whatever the default scope is."""
    return [TRANSFORMS.build(t) if isinstance(t, Mapping) else t for t in pipeline]


@DATASETS.register_module()
class PixelDataset(SampleSource, BaseDataset):
    """Base of the readers; MMEngine's ``BaseDataset`` with draws as in :class:`SampleSource`.

    A reader gives :meth:`load_data_list` (plain dicts, kept serialised; a generator keeps the
    memory small) and :meth:`record`. It knows no tokenizer, no template tokens and no tensor.

    Args:
        ann_file: Annotation file, relative to ``data_root``.
        data_root: Root of all relative paths.
        data_prefix: Image folders relative to ``data_root``, e.g. ``dict(img_path='images')``.
        pipeline: Transforms from a canonical record to a packed sample; empty gives the record.
        seed: Seed of all draws.
        test_mode: Fixed questions instead of drawn ones; a broken sample raises.
        max_refetch: How many other samples are tried in place of a broken one.
        indices: Keep only these items, or the first ``indices`` ones.
        exclude_images: File of images that are left out, see :func:`~.image_keys.read_image_keys`:
            those that another data set evaluates on.
        index_cache: Folder in which the parsed annotations are kept, so that the next run starts at
            once and all processes share one copy. None parses them every time.
        name: Name in ``meta['dataset']``; the class name by default.
        lazy_init: Load annotations at first use.

    Raises:
        MissingFilesError: Files are missing; all are named.
        AnnotationError: An annotation file is damaged or leaves no item.
    """

    # Attributes that hold further annotation files, relative to ``data_root`` as ``ann_file`` is.
    file_options: tuple[str, ...] = ()
    # An image may lie in any folder of ``data_prefix``, and not all of them must exist.
    searches_folders = False

    def __init__(
        self,
        ann_file: str = '',
        data_root: str = '',
        data_prefix: Mapping[str, str] | None = None,
        pipeline: Sequence[Mapping | Callable] = (),
        seed: int = 0,
        test_mode: bool = False,
        max_refetch: int = 100,
        indices: int | Sequence[int] | None = None,
        exclude_images: str | None = None,
        index_cache: str | None = None,
        name: str | None = None,
        lazy_init: bool = False,
    ) -> None:
        self.seed = seed
        self.name = name or type(self).__name__
        self.index_cache = index_cache
        self._excluded = read_image_keys(exclude_images) if exclude_images else frozenset()
        self._skips = SkipCounter()
        self._notes = SkipCounter(mask_numbers=False)
        super().__init__(
            ann_file=ann_file,
            data_root=data_root,
            data_prefix=dict(data_prefix or {'img_path': ''}),
            indices=indices,
            pipeline=build_pipeline(pipeline),
            test_mode=test_mode,
            lazy_init=lazy_init,
            max_refetch=max_refetch,
        )
        self._metainfo['dataset'] = self.name

    def _join_prefix(self) -> None:
        for option in self.file_options:
            path = getattr(self, option)
            if path and not osp.isabs(path):
                setattr(self, option, osp.join(self.data_root, path))
        super()._join_prefix()
        for option in ('ann_file', *self.file_options):
            path = getattr(self, option)
            found = find_file(path)
            if found != path:
                print_log(
                    f'{self.name}: there is no {path} ({option}); {found} is read',
                    'current',
                    logging.WARNING,
                )
                setattr(self, option, found)

    def required_paths(self) -> dict[str, str]:
        """Config key to path of everything that must exist before training starts."""
        absent = self._absent_folders()
        folders = {f'data_prefix.{key}': path for key, path in self.data_prefix.items() if path}
        folders = {key: path for key, path in folders.items() if key not in absent}
        files = {option: getattr(self, option) for option in self.file_options}
        return {'ann_file': self.ann_file, **folders, **files}

    def _absent_folders(self) -> dict[str, str]:
        """Config key to path of image folders that are missing and may be."""
        if not self.searches_folders:
            return {}
        return absent_choices(
            {f'data_prefix.{key}': path for key, path in self.data_prefix.items()}
        )

    def usable(self, parse: Callable[..., Any], *args: Any) -> Any:
        """Parse an entry of the annotation file, for :meth:`load_data_list`.

        Args:
            parse: Function that raises BadSampleError if the entry is at fault.
            *args: Its arguments.

        Returns:
            What ``parse`` gives; None for an entry at fault, which is counted in training. In
            test mode the error is raised, since a test set must not shrink unnoticed.
        """
        try:
            return parse(*args)
        except BadSampleError as error:
            if self.test_mode:
                raise
            self._skip(error)
            return None

    def parse_list(
        self, parse: Callable[[dict, str], Any], keys: Iterable[str] = ()
    ) -> Iterator[tuple[int, Any]]:
        """Parse the entries of a JSON list (or of ``*.jsonl``), see :meth:`usable`.

        Args:
            parse: Function of an entry and its position in the file; None leaves the entry out.
            keys: Keys that every entry must have.

        Yields:
            Number of an entry, and what ``parse`` gives.

        Raises:
            AnnotationError: The file is damaged, or an entry lacks a key.
        """
        for i, entry in enumerate(iter_json(self.ann_file, 'ann_file')):
            require_keys(entry, keys, self.ann_file, f'[{i}]')
            item = self.usable(parse, entry, f'[{i}]')
            if item is not None:
                yield i, item

    def fault(self, where: str, reason: str, file: str | None = None) -> BadSampleError:
        """Make the error about a place in the annotation file, or in another one."""
        return BadSampleError(file or self.ann_file, where, reason)

    def image_fields(self, entry: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
        """See :func:`~.annotation_files.image_fields`."""
        return image_fields(entry, key, self.data_prefix['img_path'], self.ann_file, where)

    def canonical_record(
        self,
        info: Mapping[str, Any],
        name: Any,
        task: str,
        conversation: list[dict],
        masks: Iterable[Any] = (),
        prompts: Iterable[dict] = (),
        **meta: Any,
    ) -> Record:
        """Make a record, see :meth:`SampleSource.record`.

        Args:
            info: The item, with ``img_path`` and, if stated, ``height`` and ``width``.
            name: What ends the sample id; unique in the data set.
            task: Value of ``meta['task']``.
            conversation: The turns.
            masks: One for each ``[SEG]`` of the answers, in their order.
            prompts: The visual prompts.
            **meta: What ``meta`` holds besides.
        """
        meta = dict(sample_id=f'{self.name}/{name}', dataset=self.name, task=task, **meta)
        return dict(
            img_path=info['img_path'],
            conversation=conversation,
            masks=list(masks),
            prompts=list(prompts),
            meta=meta,
            **{side: info[side] for side in ('height', 'width') if info.get(side)},
        )

    def full_init(self) -> None:
        """Check the files, then load the annotations or their index."""
        if self._fully_initialized:
            return
        require_paths(self.required_paths(), self.name)
        with without_garbage_collection():
            self.data_bytes, self.data_address = (
                items_in_memory(self._items()) if self.index_cache is None else self._cached_index()
            )
        if not len(self.data_address):
            left_out = '; '.join(f'{n} x {reason}' for reason, n in self.skipped.most_common(5))
            raise AnnotationError(
                self.ann_file,
                'ann_file',
                f'{self.name} has no item: nothing in '
                'the file passes the filters (split, empty texts); check split '
                f'and ann_file. Left out: {left_out or "nothing"}',
            )
        self._fully_initialized = True
        absent = self._absent_folders()
        if absent:
            require_images(map(self.image_path, range(len(self))), absent, self.name)
        for key, path in absent.items():
            self._notes.add(f'folder that is missing ({key}: {path}); all images are in others')
        for reason, times in self.noted.items():
            print_log(f'{self.name}: {times} x {reason}', 'current', logging.WARNING)

    def _items(self) -> Iterable[dict]:
        """The items that ``exclude_images`` and ``indices`` keep."""
        items = self.load_data_list()
        if self._excluded:
            items = filter(self._is_wanted, items)
        if isinstance(self._indices, int):
            return islice(items, self._indices)
        if self._indices is not None:
            every = list(items)
            return [every[i] for i in self._indices]
        return items

    def _is_wanted(self, info: dict) -> bool:
        path = self.image_of(info)
        excluded = path is not None and image_key(path) in self._excluded
        if excluded:
            self._skips.add('image excluded')
        return not excluded

    def _identity(self, **more: Any) -> dict:
        """Fingerprint of the items, or of something else that is made of them."""
        options = {
            key: value for key, value in vars(self).items() if key not in _NOT_PART_OF_THE_INDEX
        }
        return fingerprint(type(self), {**options, **more}, self.required_paths().values())

    def _cached_index(self) -> tuple[np.ndarray, np.ndarray]:
        cache = IndexCache(self.index_cache)
        identity = self._identity()
        found = cache.load(identity)
        if found is not None:
            for counter, counts in ((self._skips, 'skipped'), (self._notes, 'noted')):
                for reason, times in found[2][counts].items():
                    counter.add(reason, times)
            return found[:2]
        before = self.skipped, self.noted
        try:
            cache.store(
                identity,
                self._items,
                lambda: dict(skipped=self.skipped - before[0], noted=self.noted - before[1]),
            )
        except OSError as error:
            self._warn_unkept(cache, error)
            return items_in_memory(self._items())
        found = cache.load(identity)
        return found[:2] if found else items_in_memory(self._items())

    def _warn_unkept(self, cache: IndexCache, error: OSError) -> None:
        print_log(
            f'{self.name}: nothing can be kept in index_cache {cache.folder} ({error}); the '
            'next run reads the annotations again',
            'current',
            logging.WARNING,
        )

    @force_full_init
    def get_data_info(self, idx: int) -> dict:
        """Give an item as :meth:`load_data_list` made it, with its image where it lies; a copy."""
        info = read_item(self.data_bytes, self.data_address, idx)
        if 'img_path' in info:
            info['img_path'] = self.image_of(info)
        return info

    @force_full_init
    def image_path(self, index: int) -> str | None:
        """Path of an item's image without building its record; None for text only."""
        return self.image_of(read_item(self.data_bytes, self.data_address, index))

    def image_of(self, info: dict) -> str | None:
        """Path of the image of what :meth:`load_data_list` gives; None for text only."""
        path = info.get('img_path')
        if path is None:
            return None
        folder, name = osp.split(path)
        others = self.data_prefix.values() if self.searches_folders else ()
        return find_photo(name, [folder, *others])

    def find_image(self, name: str) -> str:
        """Path of an image in the first folder of ``data_prefix`` that has it, else the first."""
        return find_photo(name, [*self.data_prefix.values()])

    @property
    def modality_length(self) -> list[int]:
        """See :attr:`SampleSource.modality_length`; kept with the index if there is a cache."""
        if self._modality_length is None and self.index_cache is not None:
            self._modality_length = self._cached_lengths()
        return super().modality_length

    def _cached_lengths(self) -> list[int]:
        meter = LengthMeter(self.pipeline.transforms, self.name)
        cache = IndexCache(self.index_cache)
        identity = self._identity(lengths=meter.identity(), seed=self.seed)
        found = cache.load(identity)
        if found is not None:
            return read_item(*found[:2], 0)
        lengths = measure_lengths(self, meter)
        try:
            cache.store(identity, lambda: [lengths], dict)
        except OSError as error:
            self._warn_unkept(cache, error)
        return lengths


def select_turns(
    turns: list, num_turns: int | None, shuffle: bool, rng: np.random.Generator
) -> list:
    """Keep the first ``num_turns`` turns of a conversation (None: all), in a new list.

    With ``shuffle`` the turns do not depend on each other and are drawn in any order.
    """
    order = rng.permutation(len(turns)) if shuffle else range(len(turns))
    return [turns[i] for i in order][:num_turns]

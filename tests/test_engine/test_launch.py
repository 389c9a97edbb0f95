"""Messages and statuses of the command line; files that are missing before a run."""

import pytest
from torch.utils.data import DataLoader

from pixelsail_mm.command_line import explain, run_command
from pixelsail_mm.engine.preflight import check_files
from pixelsail_mm.errors import (
    BadSampleError,
    CheckpointError,
    ConfigError,
    MissingFilesError,
    NoUsableSampleError,
)


def test_all_missing_files_are_listed(tmp_path):
    from mmengine.config import Config

    (tmp_path / 'there.json').write_text('{}')
    cfg = Config(
        dict(
            load_from=str(tmp_path / 'w.pth'),
            train_dataloader=dict(
                dataset=dict(
                    type='Concat',
                    datasets=[
                        dict(data_root=str(tmp_path), ann_file='there.json'),
                        dict(
                            data_root=str(tmp_path),
                            ann_file='gone.json',
                            data_prefix=dict(img='images'),
                        ),
                        dict(ann_file=str(tmp_path / 'away.json')),
                    ],
                )
            ),
        )
    )
    with pytest.raises(MissingFilesError) as error:
        check_files(cfg, ('train_dataloader',))
    text = str(error.value)
    assert text.startswith('config: 4 files or folders')
    for name in ('gone.json', 'images', 'away.json', 'w.pth'):
        assert name in text
    assert 'there.json' not in text
    assert 'train_dataloader.dataset.datasets[1].ann_file' in text


def test_a_file_that_differs_in_case_is_not_missing(tmp_path):
    from mmengine.config import Config

    (tmp_path / 'muse_train.json').write_text('[]')
    check_files(
        Config(
            dict(
                train_dataloader=dict(
                    dataset=dict(
                        type='MUSEDataset', data_root=str(tmp_path), ann_file='MUSE_train.json'
                    )
                )
            )
        ),
        ('train_dataloader',),
    )


def test_unknown_type_suggests_the_right_one():
    from pixelsail_mm.registry import DATA_SAMPLERS

    with pytest.raises(KeyError) as error:
        DATA_SAMPLERS.build(dict(type='DefaultSamplr'))
    # Other libraries may have registered samplers with similar names; ours comes first.
    assert explain(error.value).startswith(
        "type='DefaultSamplr' is not a registered data sampler; did you mean DefaultSampler"
    )


def test_wrong_argument_of_a_component_is_the_users_mistake():
    from mmengine.registry import Registry

    registry = Registry('thing')

    @registry.register_module()
    class Thing:
        def __init__(self, size):
            self.size = len(size)

    with pytest.raises(TypeError) as error:
        registry.build(dict(type='Thing', sise=1))
    assert "unexpected keyword argument 'sise'" in explain(error.value)
    with pytest.raises(TypeError) as error:
        registry.build(dict(type='Thing', size=1))
    assert explain(error.value) is None


@pytest.mark.parametrize(
    'error, expected',
    [
        (ConfigError('a'), 'a'),
        (CheckpointError('f.pth', 'broken', 'copy it'), 'f.pth: broken; copy it'),
        (
            FileNotFoundError(2, 'No such file or directory', 'x.json'),
            'No such file or directory: x.json',
        ),
        (
            ModuleNotFoundError("No module named 'plugin'", name='plugin'),
            "No module named 'plugin'; install it, or correct custom_imports in the config",
        ),
    ],
)
def test_user_errors_are_explained(error, expected):
    assert explain(error) == expected


class Raising:
    """A data set that raises one error."""

    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise self.error


@pytest.mark.parametrize(
    'error, expected',
    [
        (NoUsableSampleError('all are: bad\nNoUsableSampleError: so'), None),
        (BadSampleError('a.png', 'img_path', 'is cut'), None),
        (MissingFilesError([('a', 'x')], 'config'), None),
        (FileNotFoundError(2, 'No such file', 'x'), "[Errno 2] No such file: 'x'"),
    ],
)
def test_user_errors_of_a_worker_are_explained(error, expected):
    with pytest.raises(Exception, match='Original Traceback') as raised:
        next(iter(DataLoader(Raising(error), num_workers=1)))
    assert explain(raised.value) == (expected or str(error))


@pytest.mark.parametrize('error', [ValueError('bug'), ConnectionResetError('gone')])
def test_bugs_in_a_worker_keep_their_traceback(error):
    with pytest.raises(type(error)) as raised:
        next(iter(DataLoader(Raising(error), num_workers=1)))
    assert explain(raised.value) is None


@pytest.mark.parametrize(
    'error',
    [
        ValueError('bug'),
        KeyError('bug'),
        TypeError('bug'),
        ConnectionError('reset'),
        ModuleNotFoundError('x', name='pixelsail_mm.absent'),
    ],
)
def test_bugs_keep_their_traceback(error):
    assert explain(error) is None

    def fail():
        raise error

    with pytest.raises(type(error)):
        run_command(fail)


def test_status_and_message_of_a_command(capsys, monkeypatch):
    def fail():
        raise ConfigError('mend this')

    assert run_command(lambda: None) == 0
    assert run_command(fail) == 2
    assert capsys.readouterr().err.startswith('error: mend this\n')
    with pytest.raises(ConfigError):
        run_command(fail, debug=True)
    monkeypatch.setenv('PIXELSAIL_DEBUG', '1')
    with pytest.raises(ConfigError):
        run_command(fail)

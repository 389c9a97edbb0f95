"""Packaging of pixelsail_mm; everything that varies is read from version.py and requirements/."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def read_version() -> str:
    """Version string of the package, read without importing it."""
    source = (ROOT / 'pixelsail_mm' / 'version.py').read_text(encoding='utf-8')
    return re.search(r"^__version__ = '([^']+)'", source, re.MULTILINE).group(1)


def read_requirements(name: str) -> dict:
    """Requirements of ``requirements/NAME.txt`` by ``[section]``; '' holds the lines before one."""
    sections = {'': []}
    current = ''
    for line in (ROOT / 'requirements' / f'{name}.txt').read_text(encoding='utf-8').splitlines():
        line = line.split('#')[0].strip()
        if line.startswith('['):
            current = line.strip('[]')
            sections[current] = []
        elif line:
            sections[current].append(line)
    return sections


def read_extras() -> dict:
    """Extras: the sections of optional.txt, ``tests``, and ``all`` of them together."""
    extras = {name: lines for name, lines in read_requirements('optional').items() if name}
    extras['tests'] = read_requirements('tests')['']
    extras['all'] = sorted({line for lines in extras.values() for line in lines})
    return extras


def read_long_description() -> str:
    """README.md where the source tree has it."""
    readme = ROOT / 'README.md'
    return readme.read_text(encoding='utf-8') if readme.is_file() else ''


if __name__ == '__main__':
    setup(
        name='pixelsail_mm',
        version=read_version(),
        description='Pixel-SAIL, one transformer for pixel-grounded understanding, as a plugin '
        'framework on MMEngine and MMDetection conventions',
        long_description=read_long_description(),
        long_description_content_type='text/markdown',
        license='Apache-2.0',
        keywords=['referring segmentation', 'multimodal large language model', 'mmengine'],
        classifiers=[
            'Development Status :: 4 - Beta',
            'License :: OSI Approved :: Apache Software License',
            'Operating System :: POSIX :: Linux',
            'Programming Language :: Python :: 3.10',
            'Programming Language :: Python :: 3.11',
            'Programming Language :: Python :: 3.12',
            'Topic :: Scientific/Engineering :: Artificial Intelligence',
        ],
        python_requires='>=3.10,<3.13',
        packages=find_packages(include=['pixelsail_mm', 'pixelsail_mm.*']),
        # Below .mim are links to configs, tools and model-index.yml: a wheel has the files.
        package_data={
            'pixelsail_mm': [
                '**/*.json',
                '**/*.yml',
                '**/*.yaml',
                '**/*.txt',
                '**/*.jinja',
                '.mim/**/*.py',
                '.mim/**/*.sh',
            ]
        },
        include_package_data=True,
        install_requires=read_requirements('runtime')[''],
        extras_require=read_extras(),
        zip_safe=False,
    )

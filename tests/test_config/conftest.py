"""The log, for the tests of this folder."""

import logging

import pytest
from mmengine.logging import MMLogger


@pytest.fixture
def lines():
    """Lines of the log, as they come."""
    messages = []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)

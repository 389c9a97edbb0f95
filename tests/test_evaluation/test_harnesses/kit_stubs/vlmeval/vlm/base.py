"""Stub: base class of models."""


class BaseModel:
    """What the kit calls, and what it gives to a model."""

    INTERLEAVE = False
    allowed_types = ('text', 'image', 'video')

    def __init__(self):
        self.dump_image_func = None

    def set_dump_image(self, dump_image_func):
        self.dump_image_func = dump_image_func

    def dump_image(self, line, dataset):
        return self.dump_image_func(line)

    def use_custom_prompt(self, dataset):
        return False

    def generate(self, message, dataset=None):
        if isinstance(message, str):
            message = [dict(type='text', value=message)]
        assert all(part['type'] in self.allowed_types for part in message)
        return self.generate_inner(message, dataset)

"""The offline file of a W&B run, read back with W&B's own messages."""

import json

from wandb.proto import wandb_internal_pb2 as messages

BLOCK, HEAD = 32768, 7


def records(file):
    """Yield the messages of an offline file: W&B's head of 7 bytes, then blocks of pieces as in LevelDB's log."""
    content = file.read_bytes()
    assert content.startswith(b":W&B")
    place, message = HEAD, b""
    while place + HEAD < len(content):
        left = BLOCK - place % BLOCK
        if left < HEAD:
            place += left
            continue
        size, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        if not kind:  # a killed process leaves room that nothing was written to
            return
        message += content[place + HEAD : place + HEAD + size]
        place += HEAD + size
        if kind in (1, 4):  # whole, or the last piece
            record = messages.Record()
            record.ParseFromString(message)
            message = b""
            yield record


class Offline:
    """What one offline file says."""

    def __init__(self, file):
        self.run, self.config, self.history, self.summary = None, {}, [], {}
        for record in records(file):
            kind = record.WhichOneof("record_type")
            if kind == "run" and self.run is None:
                self.run = record.run
            elif kind == "config":
                self.config |= self._read(record.config.update)
            elif kind == "history":
                self.history.append(self._read(record.history.item))
            elif kind == "summary":
                self.summary |= self._read(record.summary.update)

    @staticmethod
    def _read(items):
        return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}

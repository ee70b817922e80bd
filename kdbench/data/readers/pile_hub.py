"""The domains of the Pile that RegMix mixes, from the hub."""

from kdbench.data.cards import Hub
from kdbench.data.readers.fetched import load
from kdbench.data.readers.published import digest
from kdbench.data.registry import Row

DOMAINS = (
    *("arxiv", "freelaw", "nih_exporter", "pubmed_central", "wikipedia_en", "dm_mathematics", "github", "philpapers"),
    *("stackexchange", "enron_emails", "gutenberg_pg_19", "pile_cc", "ubuntu_irc", "europarl", "hackernews"),
    *("pubmed_abstracts", "uspto_backgrounds"),
)


def hub_domains(hub: Hub, split: str) -> list[Row]:
    """Return ``{"text", "domain"}`` of the published training texts, or a half of the validation ones by their hash.

    The files of a domain begin with its name, in the folders ``train`` and ``valid``, as the preparation of the official code
    has them.
    """
    folder, half = ("train", None) if split == "train" else ("valid", int(split == "test"))
    tables = {
        domain: load(hub.id, hub.id, "train", data_files={"train": f"{folder}/{domain}*"}, revision=hub.revision)
        for domain in DOMAINS
    }
    return [
        {"text": row["text"], "domain": domain}
        for domain, table in tables.items()
        for row in table
        if half is None or digest(row["text"]) % 2 == half
    ]

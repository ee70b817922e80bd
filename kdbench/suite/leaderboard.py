"""The leaderboards: from claim files and the records in ``results.json``, a page a paper, the index, one HTML page of all.

The same files give the same bytes, and nothing is fitted or imported for it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from kdbench.errors import UserError, nearest
from kdbench.files import write_text
from kdbench.suite import entries, page, web_page
from kdbench.suite.entries import NOT_RUN, Entry
from kdbench.suite.statistics import Answer


def render(home: Path, chosen: Sequence[str] = ()) -> list[Path]:
    """Write the pages of the chosen papers (and of their parts), the index and the HTML page; return what was written.

    Args:
        home: the folder of all leaderboards.
        chosen: names of papers or parts, default all; the index and the HTML page always show all.

    Raises:
        UserError: there is no such paper, or a claim file or its results have faults.
    """
    known = entries.papers(home)
    for name in chosen:
        if name not in known:
            raise UserError(f"There is no '{home / name / 'claim.yaml'}'.{nearest(name, known)}")
    found = [entries.read(home, paper) for paper in known]
    texts = {
        home / each.paper / name: text
        for each in found
        if not chosen or any(each.paper == name or each.paper.startswith(f"{name}/") for name in chosen)
        for name, text in page.files(each.paper, each.file, each.results, each.verdicts, known).items()
    }
    texts |= {home / "README.md": index(found), home / "index.html": web_page.html(found)}
    for path, text in texts.items():
        write_text(path, text)
    return list(texts)


def index(found: Sequence[Entry]) -> str:
    """Return the index of all papers in Markdown."""
    rows = []
    for each in found:
        indent = "&emsp;" * each.paper.count("/")
        name = f"{indent}[{each.paper.rpartition('/')[2]}]({each.paper}/README.md)"
        if each.results is None:
            rows.append((name, ", ".join(each.families), NOT_RUN, each.scale, *["-"] * 4))
            continue
        rows.append(
            (
                name,
                ", ".join(each.families),
                counted(each.counts),
                each.scale,
                str(each.results.seeds),
                str(len(each.results.records)),
                f"{each.results.hours():.2f}",
                page.machines(each.results),
            )
        )
    head = ("paper", "family", "verdicts", "scale", "seeds", "runs", "hours", "hardware")
    told = Counter(verdict.answer for each in found for verdict in each.verdicts.values())
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    embedded = any(each.results and each.scale == "embedded" for each in found)
    return (
        "# Leaderboards\n\n"
        "What the papers claim, and what came of it here: every arm with every seed, judged by an interval. "
        f"{sum(told.values())} claims were judged: {counted(told) or 'none yet'}. "
        "The same as one page with plots and every record: [index.html](index.html).\n\n"
        + "\n".join(lines)
        + "\n\nScale: *embedded* is generated data that needs no network, *local* the real data in a folder, *paper* the "
        "data and networks of the hub.\n"
        + (f"Where it is embedded: {page.EMBEDDED[0].lower()}{page.EMBEDDED[1:]}\n" if embedded else "")
        + "Made by `kdbench leaderboard` from the claim files and the records beside them.\n"
    )


def counted(counts: Mapping[Answer, int]) -> str:
    """Return the answers with their counts, those that nobody got left out."""
    return ", ".join(f"{counts[answer]} {answer}" for answer in Answer if counts.get(answer))

"""A page as a browser reads it."""

import collections
from html.parser import HTMLParser

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """What a page holds; fails where its elements are not balanced, or one says nothing."""

    NEEDED = {"img": "alt", "svg": "aria-label", "th": "scope", "html": "lang"}  # noqa: RUF012

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.references, self.attributes = [], [], [], []
        self.texts = collections.defaultdict(str)  # by section
        self.counts = collections.Counter()  # of elements, by section and name
        self.rows = []  # of tables: text of the head, numbers of the data elements
        self.feed(text)
        self.close()
        assert not self.open

    @property
    def section(self):
        return next((value for name, value in reversed(self.open) if name == "section"), "")

    def handle_starttag(self, name, attributes):
        given = dict(attributes)
        assert len(given) == len(attributes)
        self.attributes += attributes
        if name in self.NEEDED:
            assert given.get(self.NEEDED[name]), name
        self.ids += [given["id"]] if "id" in given else []
        self.references += [given[key] for key in ("src", "href") if key in given]
        self.counts[self.section, name] += 1
        if name == "tr":
            self.rows.append(["", []])
        if name == "data":
            self.rows[-1][1].append(float(given["value"]))
        if name not in VOID:
            self.open.append((name, given.get("id")))

    def handle_startendtag(self, name, attributes):
        self.handle_starttag(name, attributes)
        self.open.pop()

    def handle_endtag(self, name):
        assert self.open.pop()[0] == name

    def handle_data(self, text):
        self.texts[self.section] += text
        names = [name for name, _ in self.open]
        if "th" in names and "tr" in names:
            self.rows[-1][0] += text

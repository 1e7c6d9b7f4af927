"""A slow tokenizer to compare with, written from the rules in tokenizers/README.md: plain Python, exact fractions.

    reference = Reference(spec, profile, codes)
    reference.fit(train)                        # {subject_id: [Event, …]}
    reference.vocabulary, reference.bins        # rows as dicts
    reference.timeline(events)                  # one subject's tokens

It shares with the package its settings (`TokenizerSpec`, `DatasetProfile`), and nothing that computes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from fractions import Fraction
from itertools import pairwise
from typing import Any, NamedTuple

from reference_events import Event, ancestors_of, is_one_of, kind_of, origin_of
from word_pieces_by_hand import greedy_pieces

SPECIALS = ["[BOS]", "[EOS]", "[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"]
UNK = SPECIALS.index("[UNK]")
SECOND = timedelta(seconds=1)
DAY = 86_400
IDENTITY = ("kind", "code", "unit", "text", "lower")


# ------------------------------------------------------------------------------------------------- bins


class Bin(NamedTuple):
    lower: float
    upper: float
    quantile: int  # which of [Q1] … it is
    share: Fraction  # of the weight of the code and unit that a bin is to hold
    own: int  # weight of its own events
    weight: int  # the same, with each subject weighing the same
    count: int


def bins_of(values: dict[float, list[int]], n: int, weighed: int = 0) -> list[Bin]:
    """Weighted quantile bins of {value: [weight by subject, events]}; `weighed` says which of the two weighs."""
    total = sum(sums[weighed] for sums in values.values())
    lowest = min(values)
    edges = set()
    for i in range(1, n):
        so_far = 0
        for value in sorted(values):
            so_far += values[value][weighed]
            if so_far * n > total * i:
                edges.add(value)
                break
    found = []
    bounds = [-math.inf, *sorted(edges - {lowest}), math.inf]
    for number, (lower, upper) in enumerate(pairwise(bounds), 1):
        inside = [sums for value, sums in values.items() if lower <= value < upper]
        weight, count = (sum(sums[which] for sums in inside) for which in (0, 1))
        found.append(Bin(lower, upper, number, Fraction(total, n), (weight, count)[weighed], weight, count))
    return found


def _add(sums: dict[Any, list[int]], key: Any, more: list[int]) -> None:
    old = sums.get(key, [0, 0])
    sums[key] = [old[0] + more[0], old[1] + more[1]]


# -------------------------------------------------------------------------------------------- vocabulary


def gap_token(days: int, chosen: Any) -> str | None:
    """The name of the token for a gap of so many whole days."""
    if days < 1:
        return None
    if days < chosen.weeks_from:
        return f"[DAY {days}]"
    if days < chosen.months_from:
        return f"[WEEK {max(1, days // 7)}]"
    if days < chosen.long_term_from:
        return f"[MONTH {max(1, days // 30)}]"
    return "[LONG TERM]"


def fixed_tokens(spec: Any) -> list[tuple[str, str]]:
    found = [("special", name) for name in SPECIALS]
    if spec.visit_tokens:
        found += [("visit", "[VISIT START]"), ("visit", "[VISIT END]")]
    if spec.time_tokens:
        names = [gap_token(day, spec.time_tokens) for day in range(1, spec.time_tokens.long_term_from + 1)]
        found += [("time", name) for name in dict.fromkeys(names)]
    if spec.age_bands:
        years = [str(a) if b == a + 1 else f"{a}-{b - 1}" for a, b in pairwise([0, *spec.age_bands])]
        found += [("age", f"[AGE {own}]") for own in years]
        found += [("age", f"[AGE {spec.age_bands[-1]}+]")]
    if spec.values == "separate":
        found += [("quantile", f"[Q{i + 1}]") for i in range(spec.bins)]
    return found


def score(p: Fraction) -> float:
    if p in (0, 1):
        return 0.0
    x = float(p)
    return float(f"{x * math.log(x) + (1 - x) * math.log1p(-x):.11e}")


@dataclass
class Timeline:
    tokens: list[int] = field(default_factory=list)
    seconds: list[int] = field(default_factory=list)
    event: list[int] = field(default_factory=list)
    n_static: int = 0
    outcomes: list[str] = field(default_factory=list)  # of each event
    before_origin: int = 0


class Reference:
    def __init__(self, spec: Any, profile: Any, codes: Iterable[tuple[str, str | None, list[str | None] | None]] = ()):
        """`codes` are rows of metadata/codes.parquet: code, description, parent_codes."""
        codes = list(codes)
        self.spec, self.profile = spec, profile
        self.listed: dict[str, str | None] = {}  # descriptions as they are given; the first of a code counts
        self.stated: dict[str, list[str]] = {}
        for code, said, above in codes:
            self.listed.setdefault(code, said)
            self.stated.setdefault(code, []).extend(p for p in above or [] if p)
        self.descriptions = {code: said for code, said in self.listed.items() if said}

    # -- fitting

    def fit(
        self, train: dict[int, list[Event]], pieces: list[str] | None = None, whole: int | None = None
    ) -> Reference:
        """`pieces`: what Hugging Face's trainer has learned, in order (with `descriptions` only). `whole`: a subject's
        weight, of which each event has an equal share, rounded to an integer; without it, weights are exact."""
        spec = self.spec
        train = {subject: events for subject, events in train.items() if events}
        # All weights over one denominator, so that they are integers.
        common = whole or math.lcm(*map(len, train.values()))
        total = len(train) * common if spec.weights == "subject" else sum(map(len, train.values()))
        met: dict[tuple[Any, ...], list[int]] = {}  # what is alike but for its time: weight by subject, events
        for events in train.values():
            share = math.floor(Fraction(common, len(events)) + Fraction(1, 2))
            for event in events:
                sums = met.setdefault(event[1:], [0, 0])
                sums[0] += share
                sums[1] += 1
        self.events_of_code: Counter[str] = Counter()
        for (code, *_), (_, count) in met.items():
            self.events_of_code[code] += count
        self.becomes = self._rolled_up()

        plain: dict[str, list[int]] = {}
        texts: dict[tuple[str, str], list[int]] = {}
        numbers: dict[tuple[str, str | None], dict[float, list[int]]] = {}
        for what, own in met.items():
            event = Event(None, *what)
            kind, code = kind_of(event), self.becomes.get(event.code, event.code)
            rolled = code != event.code
            if kind == "number" and spec.bins:
                values = numbers.setdefault((event.code, event.unit or None), {})
                _add(values, event.value + 0.0, own)  # 0.0 and -0.0 are one
                if spec.values == "joined" and not rolled:
                    continue
            if kind == "text" and spec.texts and not rolled:
                _add(texts, (code, event.text), own)
            else:
                _add(plain, code, own)
        weighed = 0 if spec.weights == "subject" else 1
        self.bins_of = {key: bins_of(values, spec.bins, weighed) for key, values in numbers.items()}

        entries = [("code", code, None, None, None, None, own[weighed], own[1]) for code, own in plain.items()]
        entries += [("text", code, None, t, None, None, own[weighed], own[1]) for (code, t), own in texts.items()]
        if spec.values == "joined":
            entries += [
                ("number", code, unit, None, b.lower, b.upper, b.own if spec.ranking == "count" else b.share, b.count)
                for (code, unit), bins in self.bins_of.items()
                if code not in self.becomes
                for b in bins
            ]
        names = ("kind", "code", "unit", "text", "lower", "upper", "p", "count")
        rows = [dict(zip(names, entry, strict=True)) for entry in entries]
        self._fill([r | {"p": Fraction(r["p"]) / total} for r in rows], pieces)
        self._list_bins()
        return self

    def _rolled_up(self) -> dict[str, str]:
        """What each rare code becomes."""
        if not self.spec.roll_up:
            return {}
        own, few = self.events_of_code, self.spec.roll_up.fewer_than
        ancestors = {code: ancestors_of(code, self.stated) for code in own}
        with_rare = Counter(own)
        for code, above in ancestors.items():
            if own[code] < few:
                with_rare.update(dict.fromkeys(above, own[code]))
        found = {}
        for code, above in ancestors.items():
            if with_rare[code] < few:
                enough = [(steps, -with_rare[a], a) for a, steps in above.items() if with_rare[a] >= few]
                if enough:
                    found[code] = min(enough)[2]
        return found

    def rank(self, row: dict[str, Any]) -> tuple[Any, ...]:
        ties = (row["kind"], row["code"], row["unit"] or "", row["text"] or "", row["lower"] or 0.0)
        return (score(row["p"]) if self.spec.ranking == "entropy" else -row["count"], *ties)

    def _fill(self, entries: list[dict[str, Any]], pieces: list[str] | None) -> None:
        rows = [{"kind": kind, "name": name} for kind, name in fixed_tokens(self.spec)]
        if self.spec.descriptions:
            rows += [{"kind": "piece", "text": piece} for piece in pieces or []]
        else:
            plain = {row["code"]: row for row in entries if row["kind"] == "code"}
            for code in {row["code"] for row in entries} - plain.keys():
                none = dict.fromkeys(("unit", "text", "lower", "upper"))
                plain[code] = {"kind": "code", "code": code, "p": Fraction(0), "count": 0} | none
            room = self.spec.vocabulary_size - len(rows)
            taken: dict[tuple[Any, ...], dict[str, Any]] = {}  # by what a row is
            for row in sorted(entries, key=self.rank):
                new = {tuple(r[c] for c in IDENTITY): r for r in (row, plain[row["code"]])}
                if len(taken) + sum(what not in taken for what in new) > room:
                    break
                taken |= new
            rows += sorted(taken.values(), key=self.rank)
        self.vocabulary = [{"token": token} | row for token, row in enumerate(rows)]
        self.named = {r["name"]: r["token"] for r in self.vocabulary if "name" in r}
        self.plain = {r["code"]: r["token"] for r in self.vocabulary if r["kind"] == "code"}
        self.texts = {(r["code"], r["text"]): r["token"] for r in self.vocabulary if r["kind"] == "text"}
        self.numbers = {
            (r["code"], r["unit"], r["lower"]): r["token"] for r in self.vocabulary if r["kind"] == "number"
        }
        self.pieces = {r["text"]: r["token"] for r in self.vocabulary if r["kind"] == "piece"}
        self._spellings: dict[str, list[int]] = {}
        self._memo: dict[tuple[Any, ...], tuple[list[int], str]] = {}

    def _list_bins(self) -> None:
        self.bins = [
            {
                "code": code,
                "unit": unit,
                "lower": b.lower,
                "upper": b.upper,
                "bin": b.quantile,
                "weight": b.weight,
                "count": b.count,
                "token": self._token_of_bin(code, unit, b),
            }
            for (code, unit), bins in sorted(self.bins_of.items(), key=lambda item: (item[0][0], item[0][1] or ""))
            for b in bins
        ]

    def _token_of_bin(self, code: str, unit: str | None, found: Bin) -> int | None:
        if self.spec.values == "separate":
            return self.named[f"[Q{found.quantile}]"]
        return self.numbers.get((code, unit, found.lower))

    # -- encoding

    def sentence(self, event: Event) -> str:
        text = event.text if self.spec.texts and kind_of(event) == "text" else None
        words = self.descriptions.get(event.code, event.code)
        return f"{words}: {text}" if text else words

    def meaning(self, event: Event) -> tuple[list[int], str]:
        """The tokens of an event, without those of time and visits, and its outcome."""
        if event.time is None and not self.spec.static_prefix:
            return [], "static"
        what = event[1:]
        if what not in self._memo:
            self._memo[what] = self._spelled(event) if self.spec.descriptions else self._looked_up(event)
        return self._memo[what]

    def _bin(self, event: Event) -> Bin | None:
        bins = self.bins_of.get((event.code, event.unit or None), [])
        return next((b for b in bins if b.lower <= event.value < b.upper), None)

    def _looked_up(self, event: Event) -> tuple[list[int], str]:
        spec, kind = self.spec, kind_of(event)
        plain = self.plain.get(event.code)
        if kind == "code" and plain is not None:
            return [plain], "code"
        if kind == "text" and spec.texts and (event.code, event.text) in self.texts:
            return [self.texts[event.code, event.text]], "text"
        found = self._bin(event) if kind == "number" and spec.bins else None
        token = self._token_of_bin(event.code, event.unit or None, found) if found else None
        if token is not None and spec.values == "joined":
            return [token], "number"
        if token is not None and plain is not None:
            return [plain, token], "number"
        if plain is not None:
            return [plain], "unseen unit" if kind == "number" and spec.bins and not found else "value ignored"
        if spec.roll_up:
            above = ancestors_of(event.code, self.stated)
            of_code = {a: [row["count"] or 0 for row in self.vocabulary if row.get("code") == a] for a in above}
            counts = {a: sum(of_code[a]) for a in above if a in self.plain}
            held = [(above[a], -counts[a], a) for a in counts]
            if held:
                return [self.plain[min(held)[2]]], "rolled up"
        return ([UNK], "unknown token") if spec.unknown == "unk" else ([], "out of vocabulary")

    def _spelled(self, event: Event) -> tuple[list[int], str]:
        sentence = self.sentence(event)
        if sentence not in self._spellings:
            self._spellings[sentence] = [self.pieces.get(piece, UNK) for piece in greedy_pieces(sentence, self.pieces)]
        tokens = self._spellings[sentence]
        if all(token == UNK for token in tokens):
            return ([UNK], "unknown token") if self.spec.unknown == "unk" else ([], "out of vocabulary")
        found = self._bin(event) if kind_of(event) == "number" else None
        if found:
            return [*tokens, self._token_of_bin(event.code, event.unit or None, found)], "number"
        if event.code not in self.descriptions:
            return tokens, "code in place of its description"
        return tokens, self._without_bin(event)

    def _without_bin(self, event: Event) -> str:
        """What a value or a text meets that is in no bin: its code is told."""
        kind = kind_of(event)
        if kind == "number":
            return "unseen unit" if self.spec.bins and not self._bin(event) else "value ignored"
        return kind if self.spec.texts or kind == "code" else "value ignored"

    def timeline(self, events: list[Event]) -> Timeline:
        """One subject's events, in the total order."""
        made = Timeline()
        spec, profile = self.spec, self.profile
        origin = origin_of(events, profile.birth)
        before = None  # the second of the last event that has a token
        for position, event in enumerate(events):
            own, outcome = self.meaning(event)
            made.outcomes.append(outcome)
            seconds = 0
            if event.time is not None:
                made.before_origin += event.time < origin
                seconds = max(0, -((origin - event.time) // SECOND))  # rounded up
            tokens = list(own)
            if spec.visit_tokens and event.time is not None:
                if is_one_of(event.code, profile.admission):
                    tokens.insert(0, self.named["[VISIT START]"])
                if is_one_of(event.code, profile.discharge):
                    tokens.append(self.named["[VISIT END]"])
            if tokens and event.time is not None:
                if spec.time_tokens and before is not None:
                    name = gap_token((seconds - before) // DAY, spec.time_tokens)
                    tokens = [self.named[name], *tokens] if name else tokens
                before = seconds
            made.tokens += tokens
            made.seconds += [seconds] * len(tokens)
            made.event += [position] * len(tokens)
            made.n_static += len(tokens) if event.time is None else 0
        return made

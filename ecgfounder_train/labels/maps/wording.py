"""How sure a reader's sentence is: stated, left open, or denied.

Carts and physicians write sentences ("Sinus rhythm with possible PACs, no acute changes"); a label
map looks for phrases in them. The phrase alone would count the doubt and the denial as a finding.
"""

import re
from dataclasses import dataclass

_HEDGE = (
    r"possibl[ey]|probabl[ey]|consider|suggests?|suggestive of|suspect(?:ed)?|borderline|"
    r"(?:cannot|can not|could not|can't) (?:rule out|exclude)|rule out|questionable|"
    r"(?:may|might|could) be"
)
_OPENS_BACK = r"(?:cannot be|not) (?:ruled out|excluded)"
_DENIES_BACK = r"(?:is |are )?(?:no longer|not) (?:present|seen|evident)|(?:is|are) (?:absent|gone)"
_DENIAL = r"no|not|without|absence of|negative for"
_QUALIFIER = re.compile(
    rf"\b(?:(?P<opens_back>{_OPENS_BACK})|(?P<denies_back>{_DENIES_BACK})|(?P<hedge>{_HEDGE})|"
    rf"(?P<denial>{_DENIAL}))\b",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[;.](?=\s)")
_CLAUSE_END = re.compile(r"[,;.](?=\s)|\s-+\s|\sbut\s", re.IGNORECASE)
_STOPS = re.compile(
    r"unsuitable for analysis|no further (?:\w+ )?(?:analysis|interpretation)|analysis error|"
    r"\bonly\b.*\banaly[sz]ed|all 12 leads are missing",
    re.IGNORECASE,
)
"""As the carts behind MIMIC-IV-ECG write it."""
_LOOSE = " ,;:.-"


@dataclass(frozen=True)
class Wording:
    """A statement by how sure it is.

    Attributes:
        text: All of it, with single spaces.
        firm: What it states; all of it where nothing qualifies it.
        open: What it leaves open: each such phrase, and all that it does not deny.
        denied: Each phrase that it denies.
    """

    text: str
    firm: str
    open: tuple[str, ...] = ()
    denied: tuple[str, ...] = ()


def qualifies(phrase: str) -> bool:
    """Return whether a phrase itself holds a word of doubt or denial."""
    return bool(_QUALIFIER.search(phrase))


def stops_reading(statement: str) -> bool:
    """Return whether a statement says that the rest was not analysed."""
    return bool(_STOPS.search(statement))


def read_wording(statement: str) -> Wording:
    """Return a statement by how sure it is.

    A doubt reaches to the end of its sentence, a denial to the end of its clause. A doubt behind
    which nothing follows, and "... not excluded", refer to what precedes them.
    """
    text = rest = " ".join(statement.split())
    firm: list[str] = []
    open_: list[str] = []
    denied: list[str] = []
    undenied: list[str] = []
    while found := _QUALIFIER.search(rest):
        before, after = rest[: found.start()].strip(_LOOSE), rest[found.end() :]
        hedge, denial = found["hedge"] is not None, found["denial"] is not None
        end = (_SENTENCE_END if hedge else _CLAUSE_END).search(after) if hedge or denial else None
        phrase = (after[: end.start()] if end else after).strip(_LOOSE)
        if found["denies_back"]:
            denied.append(before)
            before = ""
        elif found["opens_back"] or (hedge and not phrase):
            open_.append(before)
            undenied.append(before)
            before = ""
        firm.append(before)
        undenied.append(before)
        if hedge:
            open_.append(phrase)
            undenied.append(phrase)
        elif denial:
            denied.append(phrase)
        rest = (after[end.end() :] if end else "") if hedge or denial else after
    if not firm:
        return Wording(text, text)
    for parts in (firm, undenied):
        parts.append(rest.strip(_LOOSE))
    stated, said = (" ".join(filter(None, parts)) for parts in (firm, undenied))
    left_open = filter(None, (*open_, said if open_ else ""))
    return Wording(text, stated, tuple(left_open), tuple(filter(None, denied)))
